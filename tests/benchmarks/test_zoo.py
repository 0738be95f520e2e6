"""The zoo: some of its models through the command line, rows of failures, resuming, and the table."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.zoo import __main__ as zoo
from benchmarks.zoo import exactness, models, placement, report
from benchmarks.zoo import onnx as zoo_onnx
from benchmarks.zoo.react import make_reacting
from benchmarks.zoo.runs import Runs
from kcompile.core.plan import Layer, Placement, Plan

ROOT = Path(models.__file__).resolve().parents[2]
SMALL = ("timm.test_byobnet", "timm.test_resnet", "timm.test_convnext", "timm.test_nfnet", "timm.test_efficientnet",
         "timm.resnet10t", "timm.tinynet_e", "timm.starnet_s050", "timm.lcnet_035")  # fmt: skip
TRANSFORMERS = ("beit", "cait", "deit", "pit", "swin", "vit", "mixer", "maxvit", "resmlp")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    command = [sys.executable, "-m", "benchmarks.zoo", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rows(folder: Path) -> dict[str, Any]:
    """The rows of a results folder, by model."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("count", [2, pytest.param(len(SMALL), marks=pytest.mark.zoo)])
def test_models_are_exact(tmp_path: Path, seed: int, count: int) -> None:
    names = random.sample(SMALL, count)
    done = run(*names, "--results", tmp_path, "--jobs", "1", "--seconds", "0.2", "--seed", str(seed))
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path)
    assert set(found) == set(names)
    for name, row in found.items():
        assert f"exact    {name} (seed {seed})" in done.stdout
        assert row["seed"] == seed
        assert row["error"] <= 1e-4
        assert row["change"] >= 1e-3
        assert row["bound"] >= 1
        assert 0 < row["share"] <= 1
        assert row["timed"] >= 4
        assert row["ratio"] > 0
    assert not list(tmp_path.glob("*.part"))


def test_a_failure_is_a_row_and_does_not_stop_the_others(tmp_path: Path) -> None:
    done = run("timm.no_such_model", "nonsense", "--results", tmp_path, "--jobs", "2")
    assert done.returncode == 1
    assert "2 of 2 models have results: 0 wrong, 2 failed" in done.stdout
    found = rows(tmp_path)
    assert [found[name]["status"] for name in ("timm.no_such_model", "nonsense")] == ["failed", "failed"]
    assert "no model 'no_such_model'" in found["timm.no_such_model"]["why"]


def test_timeouts_and_crashes_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    Runs(tmp_path, timeout=0.01, jobs=1).run(["timm.slow"], told.append)
    monkeypatch.setattr("benchmarks.zoo.runs.sys.executable", "/bin/false")
    Runs(tmp_path, timeout=60, jobs=1).run(["timm.crashing"], told.append)
    assert [row["status"] for row in told] == ["timeout", "crashed"]
    assert "exit code 1" in told[1]["why"]
    assert rows(tmp_path) == {row["name"]: row for row in told}


def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    runs = Runs(tmp_path, timeout=0.01, jobs=1)
    with pytest.raises(KeyboardInterrupt):
        runs.run(["timm.first", *(f"timm.later{i}" for i in range(20))], interrupt)
    assert "timm.first" in rows(tmp_path)
    assert len(rows(tmp_path)) < 10
    assert not runs._running


def keep(folder: Path, row: dict[str, Any]) -> None:
    (folder / f"{row['name']}.json").write_text(json.dumps(row))


def row_of(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "name": name, "seed": 3, "status": "exact", "compile": 2.5, "macs": 1.8e9, "share": 0.9361, "bound": 2.81,
        "error": 1.6e-6, "change": 6.2e-2, "dtype": "float32", "ratio": 0.337, "timed": 64, "before": 0.999,
        "reasons": [["its region covers most of the map", 2]],
    }  # fmt: skip
    return {**row, **changes}


def test_models_with_a_result_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Runs, "run", lambda self, names, tell: asked.extend(names))
    keep(tmp_path, row_of("timm.done"))
    arguments = ["timm.done", "timm.other", "--results", str(tmp_path)]
    assert zoo.main(arguments) == 0
    assert asked == ["timm.other"]
    assert "1 of 2 models have results" in capsys.readouterr().out
    zoo.main([*arguments, "--again"])
    assert asked == ["timm.other", "timm.done", "timm.other"]


def test_the_table_is_written_from_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runs, "_one", lambda self, name: pytest.fail("it ran a model"))
    keep(tmp_path, row_of("timm.dla34", ratio=1.2, saved=0.93))
    keep(tmp_path, row_of("timm.gated", before=0.1, share=0.2, gated=True, dtype="float64", compile=31.0))
    failed = {"name": "torchvision.vgg16", "seed": 7, "status": "failed", "why": "compiling: Oops"}
    keep(tmp_path, failed)
    names = ["timm.dla34", "timm.gated", "torchvision.vgg16", "timm.not_run"]
    page = tmp_path / "zoo.md"
    assert zoo.main([*names, "--results", str(tmp_path), "--report", "--table", str(page)]) == 1
    text = page.read_text()
    assert "| timm.dla34 | exact | 2.5 | 1.80 | 94% | 2.81 | 93% | 2e-06 | 6e-02 | **1.20** | region ≈ map ×2 |" in text
    assert "| 2e-06 (64) |" in text
    assert "| gate after 10%; region ≈ map ×2 |" in text
    assert "| torchvision.vgg16 | **failed** | – |" in text
    assert "* torchvision.vgg16 (seed 7): compiling: Oops" in text
    assert "run: 3 of 4; compiled: 2 of 3, 1 of them in more than 30 s" in text
    assert "exact: 2 of 3" in text
    assert "multiply-adds: 1; at least half incremental: 1 of them, 94% on average" in text
    assert "saving at least 90% of what own boxes can save: 1 of 1" in text
    assert "(time/full > 1.05): 1 of 2" in text


def test_every_row_has_the_tables_columns() -> None:
    for row in (row_of("a"), {"name": "b", "seed": 1, "status": "timeout"}):
        assert report._line(row).count("|") == len(report.COLUMNS) + 1


def test_the_lists() -> None:
    import timm

    names = models.timm_names()
    assert len(names) == len(set(names))
    assert [name for name in names if not timm.is_model(name)] == []
    assert sum(not name.startswith(TRANSFORMERS) for name in names) >= 120
    everything = models.names()
    assert len(everything) == len(set(everything)) >= len(names) + 86
    assert {"torchvision.vgg16", "torchvision.fcn_resnet50", "timm.dla34"} <= set(everything)


def layer(name: str, shape: Sequence[int], inputs: Sequence[str], reason: str = "", macs: int = 0) -> Layer:
    where = Placement.DENSE if reason else Placement.INCREMENTAL
    return Layer(name, "op", "", tuple(shape), macs, where, "rule", reason, None, tuple(inputs))


def plan_of(*layers: Layer) -> Plan:
    return Plan((3, 8, 8), (2, 2), (), (), (), layers)


def test_what_a_plan_leaves_dense() -> None:
    plan = plan_of(
        layer("a", (4, 8, 8), ["x"], macs=60),
        layer("b", (4, 8, 8), ["a"], "its region covers 91% of the map on average", 10),
        layer("c", (4, 8, 8), ["a"], "its region covers 93% of the map on average", 10),
        layer("d", (4, 8, 8), ["b", "c"], "attention reads the whole map", 20),
    )
    assert placement.reasons(plan) == [("its region covers most of the map", 2)]
    assert placement.summary(plan)["share"] == pytest.approx(0.6)
    assert placement.summary(plan)["before"] == pytest.approx(0.8)


def test_a_gate_is_global_and_a_pooled_head_is_not() -> None:
    trunk = [layer("a", (4, 8, 8), ["x"], macs=30), layer("pool", (4, 1, 1), ["a"])]
    gated = plan_of(*trunk, layer("gate", (4, 8, 8), ["a", "pool"]), layer("late", (4, 8, 8), ["gate"], macs=70))
    assert placement.summary(gated)["before"] == pytest.approx(0.3)
    assert placement.summary(gated)["gated"]
    head = plan_of(*trunk, layer("fc", (4, 1, 1), ["pool"], macs=70))
    assert not placement.summary(head)["gated"]
    assert placement.first_global(head) == len(head.layers)


class Scaled(nn.Module):
    """A layer scale of 1e-6 and a head of zeros: a patch changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.first(x) * self.gamma).mean((2, 3)))


def test_networks_are_made_to_react(seed: int) -> None:
    model, image = Scaled().eval(), torch.randn(1, 3, 12, 12)
    patched = image.clone()
    patched[..., :6, :6] = torch.randn(3, 6, 6)
    with torch.no_grad():
        assert torch.equal(model(image), model(patched))
        make_reacting(model, torch.randn(4, 3, 12, 12))
        change = (model(image) - model(patched)).abs().max() / model(patched).abs().max()
    assert change > 1e-2


@pytest.mark.parametrize(
    ("error", "change", "dtype", "status"),
    [
        (9e-5, 0.1, torch.float32, "exact"),
        (2e-4, 0.1, torch.float32, "wrong"),
        (9e-8, 0.1, torch.float64, "exact"),
        (2e-7, 0.1, torch.float64, "wrong"),
        (1e-8, 1e-4, torch.float32, "void"),
        (float("nan"), 0.1, torch.float32, "wrong"),
        (float("inf"), float("inf"), torch.float32, "wrong"),
    ],
)
def test_verdicts(error: float, change: float, dtype: torch.dtype, status: str) -> None:
    assert exactness.Compared(error, change, 1.0, dtype).status == status


def test_patched_images(seed: int) -> None:
    import numpy as np

    image, patches = torch.zeros(2, 7, 9), torch.randn(3, 2, 3, 3)
    got = exactness.patched(image, patches, np.array([[1, 2], [-2, 7], [5, -1]]))
    assert torch.equal(got[0, :, 1:4, 2:5], patches[0])
    assert torch.equal(got[1, :, 0:1, 7:9], patches[1, :, 2:, :2])
    assert torch.equal(got[2, :, 5:7, 0:2], patches[2, :, :2, 1:])
    assert [int((row != 0).sum()) for row in got] == [18, 4, 8]


def test_exports_are_rows_too(tmp_path: Path) -> None:
    names = ["torchvision.squeezenet1_1"]
    args = ["--results", str(tmp_path), "--table", str(tmp_path / "zoo.md"), "--jobs", "1"]
    assert zoo_onnx.main([*names, *args]) == 0
    row = json.loads((tmp_path / "torchvision.squeezenet1_1.json").read_text())
    assert row["status"] == "exact", row
    assert row["change"] >= 1e-3
    assert row["weights_mb"] <= 1.1 * row["own_mb"] + 1
    assert zoo_onnx.main([*names, *args, "--report"]) == 0
    assert "| torchvision.squeezenet1_1 | exact |" in (tmp_path / "zoo.md").read_text()
