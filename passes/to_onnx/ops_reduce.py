"""Lowerings of reductions, softmax, and what goes along one dimension."""

from __future__ import annotations

import torch

from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx.call import Call, lowers
from kcompile.passes.to_onnx.formula import Term, term

_REDUCED = {
    "mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin", "prod": "ReduceProd",
    "logsumexp": "ReduceLogSumExp",
}  # fmt: skip


@lowers("aten.mean.dim", "aten.mean.default", "aten.sum.dim_IntList", "aten.sum.default", "aten.amax.default",
        "aten.amin.default", "aten.prod.dim_int", "aten.logsumexp.default")  # fmt: skip
def reduce(c: Call) -> str:
    """The same op."""
    return _reduced(c, term(c, c.x), _REDUCED[c.op.split(".")[1]]).name


def _reduced(c: Call, x: Term, kind: str, keep: bool | None = None) -> Term:
    dims = c.graph.ints(*sorted(set(c.dims("dim", c.x.rank))))
    kept = bool(c.get("keepdim", False)) if keep is None else keep
    return Term(c, c.do(kind, x.name, dims, keepdims=kept), x.dtype)


@lowers("aten.all.dim", "aten.any.dim", "aten.all.default", "aten.any.default")
def reduce_truth(c: Call) -> str:
    """Of what is not 0."""
    truth = term(c, c.x, torch.bool).cast(torch.int32)
    return _reduced(c, truth, "ReduceMin" if ".all." in c.op else "ReduceMax").cast(torch.bool).name


@lowers("aten.argmax.default", "aten.argmin.default")
def place(c: Call) -> str:
    """Where the largest or smallest value is."""
    kind = "ArgMax" if "max" in c.op else "ArgMin"
    if c.get("dim") is None:
        flat = c.reshape(c.x.name, c.graph.ints(-1))
        return c.do(kind, flat, axis=0, keepdims=0)
    return c.do(kind, c.x.name, axis=c["dim"] % c.x.rank, keepdims=bool(c.get("keepdim", False)))


@lowers("aten.var.correction", "aten.var.dim", "aten.std.correction", "aten.std.dim")
def moment(c: Call) -> str:
    """Mean square of the distance from the mean, over n less the correction."""
    dims = sorted(set(c.dims("dim", c.x.rank)))
    correction = c.get("correction", 1) if "correction" in c.op else int(c.get("unbiased", True))
    x = term(c, c.x)
    away = x - _reduced(c, x, "ReduceMean", keep=True)
    total = _reduced(c, away * away, "ReduceSum")
    count = Term(c, c.count(c.x, dims, c.out.dtype), c.out.dtype)
    variance = total / ((count - float(correction)) if correction else count)
    return variance.do("Sqrt").name if ".std." in c.op else variance.name


@lowers("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim", "aten.norm.Scalar")
def norm(c: Call) -> str:
    """``(sum |x|^p)^(1/p)``."""
    order = float(c.get("ord", c.get("p", 2)))
    x = term(c, c.x)
    known = {2.0: "ReduceL2", 1.0: "ReduceL1"}
    if order in known:
        return _reduced(c, x, known[order]).name
    size = x.do("Abs")
    if abs(order) == float("inf"):
        return _reduced(c, size, "ReduceMax" if order > 0 else "ReduceMin").name
    if order == 0:
        return _reduced(c, size.do("Sign"), "ReduceSum").name
    return _reduced(c, size.do("Pow", order), "ReduceSum").do("Pow", 1 / order).name


@lowers("aten.softmax.int", "aten.log_softmax.int", "aten._softmax.default", "aten._log_softmax.default")
def softmax(c: Call) -> str:
    """The same op."""
    kind = "LogSoftmax" if "log" in c.op else "Softmax"
    return term(c, c.x).do(kind, axis=c["dim"] % c.x.rank).name


@lowers("aten.cumsum.default")
def cumsum(c: Call) -> str:
    """The same op."""
    return c.do("CumSum", term(c, c.x).name, c.graph.constant(c["dim"] % c.x.rank, "int64"))


@lowers("aten.cumprod.default")
def cumprod(c: Call) -> str:
    """Cell by cell; ONNX has no such op."""
    x, dim = term(c, c.x), c["dim"] % c.x.rank
    cells = [x.do("Gather", Term(c, c.graph.ints(i), torch.int64), axis=dim) for i in range(c.x.known(dim))]
    for i in range(1, len(cells)):
        cells[i] = cells[i - 1] * cells[i]
    return c.do("Concat", *(cell.name for cell in cells), axis=dim)


@lowers("aten.glu.default")
def glu(c: Call) -> str:
    """The first half times the sigmoid of the second."""
    dim = c["dim"] % c.x.rank
    half = c.x.known(dim) // 2
    a, b = c.graph.ops("Split", c.x.name, c.graph.ints(half, half), count=2, name=c.label, axis=dim)
    return c.do("Mul", a, c.do("Sigmoid", b))


@lowers("aten.sort.default", "aten.topk.default", "aten.max.dim", "aten.min.dim")
def sort(c: Call) -> tuple[str, ...]:
    """The largest or smallest values with their places."""
    name, dim = c.op.split(".")[1], c["dim"] % c.x.rank
    largest = {"sort": c.get("descending", False), "topk": c.get("largest", True), "max": True, "min": False}[name]
    count = c.size(c.x, dim) if name == "sort" else c.graph.ints(c.get("k", 1))
    found = c.graph.ops("TopK", c.x.name, count, count=2, name=c.label, axis=dim, largest=largest, sorted=True)
    if name in ("max", "min") and not c.get("keepdim", False):
        found = tuple(c.do("Squeeze", part, c.graph.ints(dim)) for part in found)
    return found


@lowers("aten.median.dim", "aten.kthvalue.default")
def ranked(c: Call) -> tuple[str, ...]:
    """The value of some rank from below, with its place; of an even number the lower median."""
    dim = c["dim"] % c.x.rank
    rank = c["k"] if "kth" in c.op else (c.x.known(dim) + 1) // 2
    found = c.graph.ops("TopK", c.x.name, c.graph.ints(rank), count=2, name=c.label, axis=dim, largest=0, sorted=1)
    last = c.graph.ints(rank - 1) if c.get("keepdim", False) else c.graph.constant(rank - 1, "int64")
    return tuple(c.do("Gather", part, last, axis=dim) for part in found)


@lowers("aten.cummax.default", "aten.cummin.default")
def cumulative(c: Call) -> tuple[str, ...]:
    """Cell by cell, with the places of the values."""
    x, dim = c.x, c["dim"] % c.x.rank
    if x.shape[dim] is None:
        raise OnnxExportError(f"{c.op} along a dimension of unknown size has no lowering to ONNX")
    cells = [c.do("Gather", x.name, c.graph.ints(i), axis=dim) for i in range(x.known(dim))]
    values, places = [cells[0]], [c.do("Mul", c.cast(cells[0], torch.int64), c.graph.ints(0))]
    for i, cell in enumerate(cells[1:], start=1):
        newer = c.do("GreaterOrEqual" if "max" in c.op else "LessOrEqual", cell, values[-1])
        values.append(c.do("Where", newer, cell, values[-1]))
        places.append(c.do("Where", newer, c.graph.ints(i), places[-1]))
    return c.do("Concat", *values, axis=dim), c.do("Concat", *places, axis=dim)
