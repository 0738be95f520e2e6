"""`kcompile inspect`, `kcompile verify`, the help, and the command as a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kcompile import IncrementalModule, load_onnx
from tests.cli.conftest import LESIONS, Run

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--model", "squeezenet1_1", "--weights", "none", "--size", 64)


def test_inspect_shows_layers_bounds_placement_and_code(run: Run) -> None:
    result = run("inspect", *SMALL, "--plan", "--code")
    assert result.exit_code == 0, result.output
    assert "image 3x64x64, patch 16x16, 169 positions" in result.stdout
    assert "features.0" in result.stdout
    assert "speedup" in result.stdout
    assert "plan: input (3, 64, 64), patch (16, 16)" in result.stdout
    assert "# incremental part" in result.stdout
    assert "torch.ops.kcompile.gather" in result.stdout
    shorter = run("inspect", *SMALL, "--patch", "8,24", "--stride", 8)
    assert "patch 8x24, 48 positions" in shorter.stdout
    assert "plan:" not in shorter.stdout


def test_verify_is_ok(run: Run, picture: Path) -> None:
    result = run("verify", picture, "-m", LESIONS, "--size", 64, "--positions", 8, "--seed", 5, "--patch", "12,16")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("ok: 8 positions, seed 5")


def test_verify_takes_noise_and_exits_1_if_outputs_differ(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("verify", "-m", LESIONS, "--size", 64, "-n", 4).exit_code == 0
    right: Callable[..., torch.Tensor] = IncrementalModule.forward_patches

    def wrong(self: IncrementalModule, *args: object, **rest: object) -> torch.Tensor:
        return right(self, *args, **rest) * 1.01

    monkeypatch.setattr(IncrementalModule, "forward_patches", wrong)
    result = run("verify", "-m", LESIONS, "--size", 64, "-n", 4)
    assert result.exit_code == 1
    assert result.stdout.startswith("failed: 4 positions")


def test_errors_of_verify_and_inspect(run: Run, tmp_path: Path) -> None:
    for arguments, message in (
        (("verify", tmp_path / "none.png", *SMALL), "error: there is no picture"),
        (("verify", *SMALL, "--positions", 0), "error: positions is 0"),
        (("inspect", *SMALL, "--patch", "1,2,3"), "error: --patch is '1,2,3'"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith(message)


@pytest.mark.parametrize("command", [[], ["explain"], ["tune"], ["inspect"], ["verify"]])
def test_help_names_every_option_with_a_text(command: list[str], run: Run) -> None:
    result = run(*command, "--help") if command else run("--help")
    assert result.exit_code == 0
    assert result.stdout.strip()
    assert "--help" in result.stdout


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys, kcompile.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_python_m_kcompile_reports_errors_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kcompile", "explain", tmp_path / "no.png", "-m", "squeezenet1_1", "-w", "none"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f"error: there is no picture {tmp_path / 'no.png'}\n"


def test_version(run: Run) -> None:
    assert run("--version").stdout == "kcompile 0.1.0\n"


def test_export_writes_models_that_load(run: Run, tmp_path: Path) -> None:
    result = run("export", tmp_path / "models", *SMALL, "--batch", 4)
    assert result.exit_code == 0, result.output
    assert "heatmap.onnx" in result.stdout
    model = load_onnx(tmp_path / "models", ["CPUExecutionProvider"])
    assert model.materialize(torch.zeros(3, 64, 64)).shape == (1, 1000)
    assert model.preprocessing["classes"] == []


def test_export_refuses_an_opset(run: Run, tmp_path: Path) -> None:
    result = run("export", tmp_path, *SMALL, "--opset", 9)
    assert result.exit_code == 2
    assert "18 … 23" in result.stderr
