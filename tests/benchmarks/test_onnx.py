"""The benchmarks of ONNX exports: ways to gather agree, and the table tells what was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import onnx_gather
from benchmarks.onnx import _arguments, measure, table


@pytest.mark.parametrize("name", [name for name in onnx_gather.WAYS if "used" not in name])
def test_ways_to_gather_make_the_same_windows(name: str) -> None:
    given = onnx_gather.inputs(onnx_gather.Case(5, 9, 3, 6, 4))
    ways = [onnx_gather.used, onnx_gather.WAYS[name]]
    want, got = (onnx_gather.session(way).run(None, given)[0] for way in ways)
    assert want.shape == (4, 5, 6, 6)
    assert np.array_equal(got, want)
    laid = want[:, :, 1:4, 1:4]
    assert np.array_equal(laid, given["patch"]), "void: no patch is laid"


def test_table_marks_missed_bounds() -> None:
    took = {"onnxruntime": 30.0, "two": 10.0, "one": 11.0}
    row = {"network": "vgg16", "positions": 9, "median": took, "bound": 9.0, "error": 1e-7, "full_error": 2e-7,
           "change": 1e-2, "weights_mb": 1.0, "parameters_mb": 1.0}  # fmt: skip
    text = table([row])
    assert "**3.00x** (asked: 6.0x, missed)" in text
    assert "| 1.100 | 1.0e-07 | 2.0e-07 | 1.0e-02 |" in text


def test_errors_are_those_against_float64(seed: int) -> None:
    args = _arguments(["tiny", "--stride", "8", "--rounds", "1", "--share", "4", "--threads", "1", "--patch", "8"])
    row = measure("tiny", args)
    assert 0 < row["error"] <= 1e-5
    assert 0 < row["full_error"] <= 1e-5
    assert row["change"] >= 1e-3, "void: nothing reacts"
    assert set(row["median"]) == {"two", "one", "onnxruntime"}
