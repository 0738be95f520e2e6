"""The benchmark of exports from its command line, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import onnx


@pytest.mark.parametrize("openvino", [False, True])
def test_measures_a_tiny_network(
    openvino: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if openvino:
        pytest.importorskip("openvino")
    monkeypatch.setattr(onnx, "RESULTS", tmp_path)
    words = ["tiny", "--patch", "6", "--stride", "4", "--rounds", "2", "--share", "8", "--batch", "8", "--write", "out"]
    onnx.main([*words, *(["--openvino"] if openvino else [])])
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["positions"] == 49
    assert row["error"] <= 1e-5
    assert row["change"] >= 1e-3
    sides = {"two", "one", "onnxruntime"} | ({"openvino one", "openvino-f32"} if openvino else set())
    assert set(row["seconds"]) == sides
    assert all(len(values) == 2 for values in row["seconds"].values())
    assert (tmp_path / "out.md").read_text().splitlines()[-1] in capsys.readouterr().out
