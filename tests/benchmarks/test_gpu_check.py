"""The GPU check: on the CPU as a user runs it, on a GPU where there is one, and its verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_equivalence, gpu_kernels, gpu_parts, gpu_table, gpu_timing
from benchmarks.gpu_equivalence import Verdict
from benchmarks.gpu_goals import goals_text
from benchmarks.gpu_naive import Naive
from kcompile.cuda_ops import launch, reference

ROOT = Path(gpu_check.__file__).resolve().parent.parent
ABSENT = (
    "captum cuda hypothesis matplotlib monai onnx onnxruntime onnxscript pytest scipy skimage timm tqdm triton typer"
)
WITHOUT = f"""
import builtins, importlib.util
absent = set("{ABSENT}".split())
real, find = builtins.__import__, importlib.util.find_spec
def without(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and name.split(".")[0] in absent:
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = without
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in absent else find(name, package)
"""


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    """The check sets it for its process, which is this one here."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value  # type: ignore[attr-defined]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, outside the checkout, where packages beside torch are absent."""
    (cwd / "sitecustomize.py").write_text(WITHOUT)  # also in the processes that it starts
    warnings = "error,ignore::FutureWarning"  # torch 2.11 warns of itself in torch.export
    environment = {**os.environ, "PYTHONPATH": str(cwd), "PYTHONWARNINGS": warnings}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_quick_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.json"
    quick = ("--device", "cpu", "--quick", "--networks", "tiny", "--limit", "2", "--processes", "--out", str(out))
    done = run(*quick, cwd=tmp_path)
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
        assert timing["interactive"]["way"] == "eager"
        assert all(ours["memory"] is None for ours in timing["incremental"]), "on a CPU nobody watches"
        assert timing["naive"]["untried"] == ["CUDA graph", "torch.compile"], "on a CPU"
        for ours in timing["incremental"]:
            assert ours["error"] < min(0.05, ours["change"])
    assert report["bandwidths"][0]["ratio"] > 0
    assert "cuda-bindings" in report["kernels"]["error"]
    assert "there is no kernel for it" in report["kernels"]["triton"]
    table = done.stdout[done.stdout.index("| network") :]
    assert "| tiny | ok |" in table
    assert table.count("| tiny | bfloat16 | as is |") == 1
    assert "\nresult: ok (" in table


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


GOOD: dict[str, Any] = {
    "options": {"device": "cuda"}, "failures": {}, "tests": {"status": "ok"}, "ops": [{"wrong": 0}],
    "kernels": {"target": "sm_90", "triton": "Triton, tried in 1.0 s"}, "networks": [{"status": "ok"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("other", "good"),
    [
        ({}, True),
        ({"tests": {"status": "not run: pytest is not installed"}}, True),
        ({"tests": {"status": "not finished after 120 s"}}, False),
        ({"tests": {"status": "FAILED"}}, False),
        ({"kernels": {"error": "the kernels can't be loaded (see the warning above)"}}, False),
        ({"kernels": {"error": "no cuda-bindings"}, "options": {"device": "cpu"}}, True),
        ({"kernels": {"triton": "with windows alone (the Triton kernel gives wrong results)"}}, False),
        ({"kernels": {"triton": "with windows alone (no Triton)"}}, True),
        ({"ops": [{"wrong": 1}]}, False),
        ({"networks": [{"status": "void"}]}, False),
        ({"failures": {"ops": "exit code 1"}}, False),
        ({"timings": [{"precision": "tf32", "incremental": [{"error": 5e-3}]}]}, True),
        ({"timings": [{"precision": "tf32", "incremental": [{"error": 5e-3}, {"error": 2e-2}]}]}, False),
        ({"timings": [{"precision": "bfloat16", "incremental": [{"error": 2e-2}]}]}, True),
        ({"timings": [{"precision": "bfloat16", "incremental": [{"error": float("nan")}]}]}, False),
        ({"timings": [{"precision": "bfloat16", "incremental": [{}]}]}, False),
    ],
)
def test_what_passes(other: dict[str, Any], good: bool) -> None:
    assert gpu_table.passed(GOOD | other) == good


@pytest.mark.parametrize("broken", [*gpu_check.SHARES, "resnet18"])
def test_a_part_that_crashes_fails_and_the_rest_still_runs(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(name: str, args: Any, limit: float, save: Any) -> None:
        assert limit > 0
        done: dict[str, Any] = {
            "kernels": {"kernels": {"target": "sm_90", "seconds": 1.0}}, "tests": {"tests": {"status": "ok"}},
            "ops": {"ops": []}, "bandwidths": {"bandwidths": []},
        }  # fmt: skip
        save(done.get(name, {"networks": [{"network": name, "status": "ok"}], "timings": []}))
        if name == broken:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(gpu_check, "run_part", part)
    out = tmp_path / "report.json"
    networks = ["--networks", "resnet18", "vgg16"]
    assert gpu_check.main(["--device", "cpu", *networks, "--out", str(out)]) == 1
    report = json.loads(out.read_text())
    assert report["failures"] == {broken: "RuntimeError: an illegal memory access was encountered"}
    assert {*gpu_check.SHARES, "networks"} <= report.keys()
    assert [row["status"] for row in report["networks"]] == ["ok", "ok"]
    said = capsys.readouterr().out
    assert said.endswith("s)\n")
    assert f"FAILED: {broken}: RuntimeError: an illegal" in said
    assert "result: FAILED" in said


def test_a_network_that_cannot_be_made_is_a_row_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, *_: Any) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(gpu_check, "run_part", part)
    out = tmp_path / "report.json"
    assert gpu_check.main(["--device", "cpu", "--networks", "resnet18", "--out", str(out)]) == 1
    report = json.loads(out.read_text())
    assert report["networks"] == [{"network": "resnet18", "status": "crashed"}]
    assert len(report["failures"]) == 5


def test_what_was_timed_is_kept_where_the_rest_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(inc: Any, model: Any, device: Any, settings: Any, found: dict[str, Any], save: Any) -> None:
        found["incremental"] = []
        save()
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(gpu_parts, "time_network", broken)
    saved: list[Any] = []
    args = gpu_check._arguments(["--device", "cpu", "--quick", "--networks", "tiny"])
    with pytest.raises(torch.OutOfMemoryError):
        gpu_parts.run_part("tiny", args, 60.0, lambda found: saved.append(json.loads(json.dumps(found))))
    assert saved[-1]["networks"][0]["status"] == "ok"
    crash = {"network": "tiny", "incremental": [], "crash": "OutOfMemoryError: no memory left"}
    assert saved[-1]["timings"] == [{**crash, "precision": precision} for precision in ("tf32", "bfloat16")]


PROCESS = """
import os, sys, time
name, out = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--part", "--out"))
if name == "vgg16":
    time.sleep(60)
open(out, "w").write('{"networks": [{"network": "%s", "status": "ok"}], "timings": []}' % name)
if name == "resnet18":
    os.abort()
"""


def test_processes_that_die_or_hang_lose_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "part.py"
    script.write_text(PROCESS)
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    monkeypatch.setattr(gpu_check, "GRACE", 0.1)
    args = gpu_check._arguments(["--device", "cpu", "--quick", "--precisions", "tf32", "bfloat16"])
    found, failure = gpu_check.in_a_process("resnet18", args, 20.0)
    assert found["networks"] == [{"network": "resnet18", "status": "ok"}]
    assert failure.startswith("exit code -6")
    found, failure = gpu_check.in_a_process("vgg16", args, 1.0)
    assert (found, failure) == ({}, "stopped after 1 s")
    assert gpu_check.in_a_process("resnet50", args, 20.0)[1] == ""


def test_the_command_line_of_a_part_says_what_was_asked_for(tmp_path: Path) -> None:
    args = gpu_check._arguments(
        ["--device", "cpu", "--quick", "--precisions", "tf32", "--networks", "tiny", "--processes"]
    )
    command = gpu_check._command({**vars(args), "part": "ops", "out": tmp_path / "x.json", "budget": 3.0})
    again = gpu_check._arguments(command[2:])
    same = {name: value for name, value in vars(again).items() if name not in ("part", "out", "budget", "processes")}
    assert same == {name: value for name, value in vars(args).items() if name in same}
    assert (again.part, again.budget, again.processes) == ("ops", 3.0, None)


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "superimpose", lambda window, patch, offsets: window.clone())
    rows = gpu_equivalence.check_ops(torch.device("cpu"), rounds=3, seed=0)
    assert {row["op"] for row in rows if row["wrong"]} == {"superimpose", "gather_superimpose"}


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("windows", "windows"),
        ("joined", "windows"),
        ("convolved", "direct convolutions"),
        ("sm90_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc", "convolutions and products"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "elementwise"),
        ("Memcpy HtoD (Pageable -> Device)", "copies"),
        ("something_new", "other"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert gpu_kernels.kind_of(kernel) == kind


@pytest.mark.parametrize(
    ("found", "cells"),
    [
        (None, ["", ""]),
        ({"kept": 5, "capture": 0.416, "bytes": 120 << 20, "measured": []}, ["0.42", "5 (120 MiB)"]),
        ({"kept": 0, "capture": 0.0, "bytes": 0, "measured": []}, ["0.00", "none"]),
        (
            {"kept": 0, "capture": 0.1, "bytes": 0, "measured": [[[0, 0.002], [1, 0.0019]]]},
            ["0.10", "none (1.90 ms against 2.00 ms)"],
        ),
        (
            {"kept": 0, "capture": 0.1, "bytes": 0, "measured": [[(0, 0.002), (1, None)]]},
            ["0.10", "none (they fail against 2.00 ms)"],
        ),
    ],
)
def test_graphs_in_the_table(found: Any, cells: list[str]) -> None:
    assert gpu_table._graphs(found) == cells


def test_goals() -> None:
    run, few = {"name": "as is", "ratio": 5.5, "memory": 0.6}, {"share": 0.3, "name": "as is"}
    other = {"name": "not fused", "ratio": 9.0, "memory": 0.1}
    report: dict[str, Any] = {
        "options": {"device": "cuda", "quick": False, "patch": 16, "stride": 4, "networks": ["vgg16", "resnet18", "x"]},
        "bandwidths": [{"ratio": 0.9}, {"ratio": 0.69}],
        "timings": [
            {"network": "vgg16", "precision": "tf32", "incremental": [other, run], "interactive": few},
            {"network": "vgg16", "precision": "bfloat16", "incremental": [run]},
            {"network": "vgg16", "precision": "float32", "incremental": []},
        ],
    }  # fmt: skip
    assert goals_text(report) == [
        "goal, gathers: 0.69 of a copy, at worst (≥ 0.7: MISSED)",
        "goals, vgg16 in tf32: 5.50 times naive (≥ 6: MISSED), 0.30 of naive for 16 positions (≤ 0.4: met), "
        "0.60 of naive's memory (≤ 0.6: met)",
        "goals, resnet18: not measured",
    ]
    weak = {"network": "resnet18", "precision": "tf32", "naive": {"untried": ["torch.compile", "batch 512"]}}
    runs = {"incremental": [run], "interactive": few | {"name": "not fused"}}
    assert goals_text(report | {"bandwidths": [], "timings": [weak | runs]}) == [
        "goal, gathers: of a copy, at worst not measured (≥ 0.7)",
        "goals, vgg16: not measured",
        "goals, resnet18 in tf32: 5.50 times naive (≥ 2: met) where naive was not tried as torch.compile, batch 512, "
        "of naive for 16 positions not measured (≤ 0.4), 0.60 of naive's memory (≤ 0.6: met)",
    ]
    for option in ({"quick": True}, {"device": "cpu"}, {"stride": 8}):
        assert goals_text(report | {"options": report["options"] | option}) == []


def test_a_kernel_that_is_lost_fails_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the reference would be compared with itself, and timed."""

    def lost(*_: Any, **__: Any) -> Any:
        warnings.warn("kcompile's CUDA kernel 'windows' can't be used, slower …", RuntimeWarning, stacklevel=1)
        return []

    monkeypatch.setattr(gpu_parts, "check_ops", lost)
    args = gpu_check._arguments(["--device", "cpu", "--quick"])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        found, failure = gpu_check.in_place("ops", args, 10.0)
    assert not found
    assert "kernel 'windows' can't be used" in failure
    assert gpu_kernels.LOST in Path(launch.__file__).read_text()


def test_results_that_were_timed_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another map are found."""
    args = gpu_check._arguments(["--device", "cpu", "--quick", "--networks", "tiny", "--precisions", "float32"])
    compared, off = gpu_timing.Incremental.compared, [0.0]

    def broken(self: Any, naive: Naive) -> dict[str, float]:
        self.result = self.result + off[0]
        return compared(self, naive)

    monkeypatch.setattr(gpu_timing.Incremental, "compared", broken)
    for value, equal in ((0.0, True), (1.0, False)):
        off[0] = value
        found: dict[str, Any] = {}
        gpu_parts.run_part("tiny", args, 60.0, found.update)
        assert gpu_table.passed({"options": {"device": "cpu"}, "failures": {}} | found) == equal
        (row,) = found["timings"]
        cells = gpu_table._cells(row)
        assert all(cell[-1].startswith("WRONG: ") != equal for cell in cells)
        assert all("not tried: CUDA graph, torch.compile" in cell[8] for cell in cells)
        assert all(len(cell) == len(gpu_table.COLUMNS) for cell in cells)


def test_copies_of_weights_count_once() -> None:
    model, part = torch.nn.Linear(4, 3), torch.nn.Module()
    part.register_buffer("same", model.weight.data)
    assert gpu_timing.copied_weights(model, part) == 0
    part.register_buffer("packed", model.weight.detach().clone())
    other = torch.nn.Module()
    other.register_buffer("shared", part.packed)
    assert gpu_timing.copied_weights(model, part, other) == 4 * 3 * 4
