"""The drop-in benchmark: a smoke test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import dropin


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # MONAI's own indexing
def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def tiny(name: str, size: int = 0) -> tuple[nn.Module, int]:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 5)).eval(), 16

    monkeypatch.setattr(dropin, "network", tiny)
    monkeypatch.setattr(dropin, "RESULTS", tmp_path)
    threads = str(torch.get_num_threads())
    options = ["--patch", "4", "--stride", "2", "--coarse", "4", "--batch", "6", "--rounds", "2", "--threads", threads]
    dropin.main(options)
    assert not list(tmp_path.iterdir())  # writes nothing unless asked
    dropin.main([*options, "--write", "out"])
    report = json.loads((tmp_path / "out.json").read_text())
    assert [row["rows"] for row in report["recognition"]] == [1, 6]
    assert [row["explainer"] for row in report["maps"]] == ["captum", "monai"]
    for row in report["maps"]:
        assert (row["windows"], row["theirs timed"]) == (49, 16)
        assert row["error"] <= 1e-4
        assert row["change"] >= 1e-3
        assert row["lowest"] <= row["ratio"] <= row["highest"]
    assert (tmp_path / "out.md").read_text().strip() in capsys.readouterr().out
