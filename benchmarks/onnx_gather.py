"""Ways to read windows of a base tensor and lay patch tensors over them, in ONNX Runtime on the CPU, one thread.

Each way is a graph of standard ops from a base [H, W, C], patches [N, C, h, w], origins and offsets to windows
[N, C, *extent]. All give the same windows (checked); the least of the rounds counts, as other processes only add to it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from benchmarks.machine import summary
from kcompile.passes.to_onnx.functions import Cells
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.weights import Array, Weights


@dataclass(frozen=True)
class Case:
    """Windows of one layer: ``size`` of the map, ``patch`` and ``window`` in cells, the same along both axes."""

    channels: int
    size: int
    patch: int
    window: int
    queries: int

    def __str__(self) -> str:
        """As in the table."""
        return f"C{self.channels}, {self.size}², N{self.queries}, {self.patch} → {self.window}"


CASES = (Case(64, 56, 8, 10, 64), Case(256, 14, 4, 6, 64), Case(64, 112, 24, 30, 16), Case(128, 28, 6, 8, 64))

Way = Callable[[Cells, str, str, str, str, str], str]


def used(c: Cells, base: str, patch: str, origins: str, offsets: str, extent: str) -> str:
    """What exports do (`kcompile.passes.to_onnx.functions`): any offsets, patches may stick out."""
    return c.lay(c.gather(base, origins, extent), patch, offsets)


def scattered(c: Cells, base: str, patch: str, origins: str, offsets: str, extent: str) -> str:
    """ScatterND of the patch's rows into those of the window: patches must lie inside."""
    window, sizes = c.gather(base, origins, extent), c.sizes(patch)
    at = [c.at(offsets, sizes, axis) for axis in range(c.axes)]
    numbers = c.graph.op("Unsqueeze", c.numbers(at, extent, c.queries(patch)), c.graph.ints(-1))
    laid = c.graph.op("ScatterND", c.rows(window), numbers, patch)
    return c.graph.op("Reshape", laid, c.graph.op("Shape", window))


def strips(c: Cells, base: str, patch: str, origins: str, offsets: str, extent: str) -> str:
    """Concat of what lies above, left, right and below: patches must lie inside, at one offset in all windows."""
    g, window = c.graph, c.gather(base, origins, extent)
    first = g.op("Gather", offsets, g.constant(0, "int64"), axis=0)
    last = g.op("Add", first, c.sizes(patch))
    rows, cols = ((g.op("Gather", first, g.ints(axis)), g.op("Gather", last, g.ints(axis))) for axis in (0, 1))
    zero, end = g.ints(0), g.ints(2**62)

    def cut(of: str, low: str, high: str, axis: int) -> str:
        return g.op("Slice", of, low, high, g.ints(axis))

    beside = cut(window, rows[0], rows[1], 1)
    middle = g.op("Concat", cut(beside, zero, cols[0], 2), patch, cut(beside, cols[1], end, 2), axis=2)
    return g.op("Concat", cut(window, zero, rows[0], 1), middle, cut(window, rows[1], end, 1), axis=1)


def at_once(c: Cells, base: str, patch: str, origins: str, offsets: str, extent: str) -> str:
    """One Gather from the base's rows with the patches' behind them."""
    g = c.graph
    inside, own = _inside(c, patch, offsets, extent)
    outer = c.numbers([c.at(origins, extent, axis) for axis in range(c.axes)], c.sizes(base))
    below = c.rows(base)
    numbers = g.op("Where", inside, g.op("Add", own, g.op("Shape", below, end=1)), outer)
    return g.op("Gather", g.op("Concat", below, c.rows(patch), axis=0), numbers, axis=0)


def chosen(c: Cells, base: str, patch: str, origins: str, offsets: str, extent: str) -> str:
    """Where: the patch's rows spread over the window, chosen cell by cell."""
    g = c.graph
    inside, own = _inside(c, patch, offsets, extent)
    spread = g.op("Gather", c.rows(patch), g.op("Where", inside, own, g.constant(0, "int64")), axis=0)
    return g.op("Where", g.op("Unsqueeze", inside, g.ints(-1)), spread, c.gather(base, origins, extent))


def _inside(c: Cells, patch: str, offsets: str, extent: str) -> tuple[str, str]:
    """Which cells [N, *extent] of windows a patch covers, and the numbers of the patch's cells there."""
    g, sizes = c.graph, c.sizes(patch)
    at = [c.at(g.op("Neg", offsets), extent, axis) for axis in range(c.axes)]
    within = []
    for axis, cells in enumerate(at):
        size = g.op("Gather", sizes, g.ints(axis))
        both = g.op("And", g.op("GreaterOrEqual", cells, g.ints(0)), g.op("Less", cells, size))
        within.append(g.op("Unsqueeze", both, g.ints(2 - axis)))
    return g.op("And", *within), c.numbers(at, sizes, c.queries(patch))


WAYS: dict[str, Way] = {
    "Gather, Concat, Gather (used)": used, "one Gather of base and patches": at_once, "Concat of strips": strips,
    "ScatterND": scattered, "Where": chosen,
}  # fmt: skip


def session(way: Way) -> onnxruntime.InferenceSession:
    """A way as a model."""
    graph = Graph(Weights(), "windows")
    given = {"base": [None] * 3, "patch": [None] * 4, "origins": [None, 2], "offsets": [None, 2], "extent": [2]}
    for name, shape in given.items():
        graph.input(name, TensorProto.FLOAT if len(shape) > 2 else TensorProto.INT64, shape)
    cells = Cells(graph, 2)
    window = way(cells, "base", cells.last("patch"), "origins", "offsets", "extent")
    graph.output(cells.first(window), "windows", TensorProto.FLOAT, [None] * 4)
    model = helper.make_model(graph.proto(), opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inputs(case: Case) -> dict[str, Array]:
    """Random numbers; all patches at one offset inside their windows, which one way asks for."""
    rng = np.random.default_rng(0)
    offset = (case.window - case.patch) // 2
    return {
        "base": rng.standard_normal((case.size, case.size, case.channels), dtype=np.float32),
        "patch": rng.standard_normal((case.queries, case.channels, case.patch, case.patch), dtype=np.float32),
        "origins": rng.integers(0, case.size - case.window + 1, (case.queries, 2)),
        "offsets": np.full((case.queries, 2), offset),
        "extent": np.full(2, case.window),
    }


def measure(case: Case, rounds: int) -> list[float]:
    """Milliseconds of each way."""
    given, sessions = inputs(case), [session(way) for way in WAYS.values()]
    wanted = sessions[0].run(None, given)[0]
    least = [float("inf")] * len(sessions)
    for _ in range(rounds):
        for number, one in enumerate(sessions):
            start = time.perf_counter()
            found = one.run(None, given)[0]
            least[number] = min(least[number], time.perf_counter() - start)
            assert np.array_equal(found, wanted), f"{list(WAYS)[number]} gives other windows"
    return [seconds * 1e3 for seconds in least]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table: a line per way, a column per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="runs of each way, in turn")
    args = parser.parse_args(argv)
    columns = [measure(case, args.rounds) for case in CASES]
    print(f"{summary(1)}; ONNX Runtime {onnxruntime.__version__}; ms\n")
    print(f"| | {' | '.join(map(str, CASES))} |\n|{'---|' * (len(CASES) + 1)}")
    for number, name in enumerate(WAYS):
        print(f"| {name} | {' | '.join(f'{column[number]:.2f}' for column in columns)} |")


if __name__ == "__main__":
    main()
