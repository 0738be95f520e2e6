"""The GPU check: on the CPU as a user runs it, on a GPU where there is one, and its verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_equivalence, gpu_kernels
from benchmarks.gpu_equivalence import Verdict
from benchmarks.gpu_timing import Naive, Settings
from benchmarks.maps import positions_of
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
    assert [timing["precision"] for timing in report["timings"]] == ["tf32", "bfloat16"]
    for timing in report["timings"]:
        assert timing["positions"] == 16
        for times in (timing["naive"], *timing["incremental"]):
            assert times["timed"] > 0
            assert times["seconds"] > 0
        assert timing["interactive"]["share"] > 0
    assert report["bandwidths"][0]["ratio"] > 0
    assert report["kernels"].get("target") == "sm_90" or "cuda-bindings" in report["kernels"]["error"]
    table = done.stdout[done.stdout.index("| network") :]
    assert "| resnet18 | ok |" in table
    assert table.count("| resnet18 | bfloat16 | as is |") == 1
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
    monkeypatch.setattr(gpu_check, "build", lambda _: {"error": "not now"})
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


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("windows", "windows"),
        ("joined", "windows"),
        ("sm90_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc", "convolutions and products"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "elementwise"),
        ("Memcpy HtoD (Pageable -> Device)", "copies"),
        ("something_new", "other"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert gpu_kernels.kind_of(kernel) == kind


@pytest.mark.parametrize("factor", [0.25, 4.0, None])
def test_the_baseline_is_the_fastest_way_that_works(factor: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    image, positions = torch.randn(3, 8, 8), positions_of(8, 4, 1)
    naive = Naive(torch.nn.Conv2d(3, 4, 3), image, positions, torch.device("cpu"), Settings(4, 1, 1, 1.0, (4,)))
    eager = naive.way
    monkeypatch.setattr(naive, "_try", lambda *_: factor)

    def make() -> Any:
        if factor is None:
            raise RuntimeError("no C compiler")
        return lambda images: images

    best = naive._way("another", make, 1.0)
    kept = factor is not None and factor < 1
    assert best == (factor if kept else 1.0)
    assert (naive.way is eager) == (not kept)
    assert naive.timing.name == ("another" if kept else "eager")
    assert len(naive.tried) == 1
