"""The geometry that an exported graph computes is that of the scheduler."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from kcompile.core.plan import Plan
from kcompile.passes.to_onnx.geometry import Geometry, Place
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.weights import Weights
from kcompile.runtime import scheduler
from tests.support.exported import anywhere
from tests.support.networks import ready
from tests.support.op_table import OPS
from tests.support.running import compile_incremental

PARTS = [field.name for field in fields(Place)]
NAMES = (
    "conv 5x3", "conv stride 2", "conv dilation 2", "transposed conv stride 2", "transposed conv 3d", "max pool 3d",
    "pixel shuffle", "interpolate bilinear 2d, scale_factor 2", "conv padding reflect", "flip rows and columns",
    "adaptive average pool [9, 11] to (3, 4)", "conv 1d",
)  # fmt: skip
CASES = [case for case in OPS if case.name.startswith(NAMES) and case.refused is None]


def in_graph(plan: Plan, positions: np.ndarray, sizes: tuple[int, ...]) -> dict[str, dict[str, np.ndarray]]:
    """What ONNX Runtime computes of each read."""
    graph = Graph(Weights(), "geometry")
    axes = len(sizes)
    where = graph.input("positions", TensorProto.INT64, ["N", axes])
    geometry = Geometry(graph, plan, where, graph.input("sizes", TensorProto.INT64, [axes]))
    for read in plan.reads:
        place = geometry.place(read)
        for part in PARTS:
            if (name := getattr(place, part)) is not None:
                graph.output(
                    name,
                    f"{read.name}.{part}",
                    TensorProto.INT64,
                    [None] * (1 if part in ("extent", "size") else 2),
                )
    model = helper.make_model(graph.proto(), opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"positions": positions, "sizes": np.array(sizes)}), strict=True))
    return {r.name: {p: found[f"{r.name}.{p}"] for p in PARTS if f"{r.name}.{p}" in found} for r in plan.reads}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_geometry_is_the_schedulers(case, seed: int) -> None:
    patch = tuple(min(4, size) for size in case.shape[1:])
    plan = compile_incremental(ready(case.make(), case.shape), case.shape, patch).plan
    plan = replace(plan, reads=tuple(replace(read, native=()) for read in plan.reads))  # windows hold the padding
    for sizes in (patch, (1,) * len(patch)):
        for count in (1, 9):
            positions = anywhere(case.shape, sizes, count)
            regions = scheduler.evaluate(plan.regions, scheduler.patch_regions(positions, sizes))
            mine, wanted = in_graph(plan, positions, sizes), scheduler.geometry(plan, positions, sizes)
            if any(region.empty.any() for region in regions):
                continue  # boxes are larger there: the next test
            for read in plan.reads:
                want = wanted[read.name]
                assert mine[read.name]["extent"].tolist() == list(want.extent), read.name
                assert np.array_equal(mine[read.name]["origins"], want.origins), read.name
                if want.offsets is not None:
                    assert np.array_equal(mine[read.name]["offsets"], want.offsets), read.name
                if want.start is not None:
                    assert np.array_equal(mine[read.name]["start"], want.start), read.name
                    assert np.array_equal(mine[read.name]["at"], want.at), read.name
                    assert mine[read.name]["size"].tolist() == list(want.size), read.name


def test_far_positions_are_inside(seed: int) -> None:
    """A patch wholly outside the image gets boxes inside all the same."""
    case = next(case for case in OPS if case.name == "conv stride 2")
    plan = compile_incremental(ready(case.make(), case.shape), case.shape, (3, 3)).plan
    for place in in_graph(plan, np.array([[-(10**9), 10**9], [500, -3]]), (3, 3)).values():
        assert (place["origins"] >= 0).all()
        assert (place["extent"] >= 1).all()
