"""Lowering of the next floating-point number, by arithmetic: ONNX has no op on bits."""

from __future__ import annotations

import math

import torch

from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx.call import Call, lowers
from kcompile.passes.to_onnx.formula import term

_WIDER = {torch.float16: torch.float32, torch.float32: torch.float64}


@lowers("aten.nextafter.default")
def next_after(c: Call) -> str:
    """The neighbour of the first number in the second's direction.

    A step of a bit more than half the distance of neighbours, at least 3/4 of the smallest number, is rounded to a
    whole one (Rump, Zimmermann, Boldo and Melquiond 2009); it is added in the next wider type, as ``u (1 + 2 u)`` of a
    number is exact enough there.
    """
    dtype = c.out.dtype
    if dtype not in _WIDER:
        raise OnnxExportError(f"{c.op} of {dtype} has no lowering to ONNX; allowed are {', '.join(map(str, _WIDER))}")
    info, wider = torch.finfo(dtype), _WIDER[dtype]
    x, y = (term(c, name, dtype) for name in ("self", "other"))
    size = x.cast(wider).do("Abs")
    step = (size * (info.eps / 2 * (1 + info.eps))).clip(low=0.75 * info.smallest_normal * info.eps)
    up = y.test("Greater", x)
    moved = (x.cast(wider) + up.where(step, -step, wider)).cast(dtype)
    ended = x.do("Abs").test("Equal", math.inf).where(x.do("Sign") * info.max, moved, dtype)
    found = x.test("Equal", y).where(y, ended, dtype)
    return y.test("IsNaN").where(y, x.test("IsNaN").where(x, found, dtype), dtype).name
