"""The GPU check: on the CPU as a user runs it, on a GPU where there is one, and its verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_equivalence
from benchmarks.gpu_equivalence import Verdict
from kcompile.cuda_ops import reference

ROOT = Path(gpu_check.__file__).resolve().parent.parent
WITHOUT = """
import builtins, runpy, sys
real = builtins.__import__
def without(name, *args, **kwargs):
    if name.split(".")[0] in {"tqdm", "typer", "matplotlib", "skimage"}:
        raise ModuleNotFoundError(f"No module named {name!r}")
    return real(name, *args, **kwargs)
builtins.__import__ = without
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, outside the checkout, where the explainers' packages are absent."""
    script = str(ROOT / "benchmarks" / "gpu_check.py")
    warnings = ["-W", "error", "-W", "ignore::FutureWarning"]  # torch 2.11 warns of itself in torch.export
    command = [sys.executable, *warnings, "-c", WITHOUT, script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_quick_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.json"
    done = run("--device", "cpu", "--quick", "--networks", "resnet18", "--limit", "2", "--out", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    (row,) = report["networks"]
    assert row["error"] <= 1e-4
    assert row["change"] >= 1e-3
    assert row["positions"] == 16
    for times in (row["naive"], *row["incremental"]):
        assert times["timed"] > 0
        assert times["seconds"] > 0
    table = done.stdout[done.stdout.index("| network") :]
    assert "| resnet18 | ok |" in table
    assert table.endswith("result: ok\n")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_quick_on_the_gpu(tmp_path: Path) -> None:
    out = str(tmp_path / "report.json")
    done = run("--quick", "--limit", "10", "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert "--device cpu --quick" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "change", "status"),
    [
        (1e-6, 0.1, "ok"),
        (1e-3, 0.1, "FAIL"),
        (0.0, 1e-5, "void"),
        (float("nan"), 0.1, "FAIL"),
        (0.0, float("nan"), "void"),
    ],
)
def test_verdicts(error: float, change: float, status: str) -> None:
    assert Verdict(error, change).status == status


def test_a_crash_fails_and_the_other_networks_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(row: dict[str, Any], *_: Any) -> None:
        if row["network"] == "first":
            raise RuntimeError("no memory left")
        row.update(status="ok")

    monkeypatch.setattr(gpu_check, "_run_network", broken)
    monkeypatch.setattr(gpu_check, "check_ops", lambda *_, **__: [])
    out = tmp_path / "report.json"
    assert gpu_check.main(["--device", "cpu", "--networks", "first", "second", "--out", str(out)]) == 1
    rows = json.loads(out.read_text())["networks"]
    assert [row["status"] for row in rows] == ["crashed", "ok"]
    assert "no memory left" in rows[0]["crash"]
    assert "result: FAILED" in capsys.readouterr().out


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "superimpose", lambda window, patch, offsets: window.clone())
    rows = gpu_equivalence.check_ops(torch.device("cpu"), rounds=3, seed=0)
    assert {row["op"] for row in rows if row["wrong"]} == {"superimpose", "gather_superimpose"}
