"""Lowerings of linear layers, products of matrices, distances, attention and norms."""

from __future__ import annotations

import torch

from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx.call import Call, Value, lowers


@lowers("aten.linear.default")
def linear(c: Call) -> str:
    """X times the transposed weight, plus the bias."""
    x, weight, bias = c["input"], c["weight"], c.get("bias")
    if x.rank == 2 and weight.rank == 2:
        return c.do("Gemm", x.name, weight.name, *([bias.name] if bias is not None else []), transB=1)
    flipped = c.graph.op("Transpose", weight.name, perm=[1, 0]) if weight.rank == 2 else weight.name
    product = c.do("MatMul", x.name, flipped)
    return product if bias is None else c.do("Add", product, bias.name)


@lowers("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def matmul(c: Call) -> str:
    """The same op."""
    return c.do("MatMul", *(value.name for value in c.args.values()))


@lowers("aten.addmm.default", "aten.baddbmm.default")
def addmm(c: Call) -> str:
    """``beta * x + alpha * a @ b``."""
    a, b = list(c.args.values())[1:3]
    product = c.do("MatMul", a.name, b.name)
    if c.get("alpha", 1) != 1:
        product = c.do("Mul", product, c.number(c["alpha"]))
    added = c.x.name if c.get("beta", 1) == 1 else c.do("Mul", c.x.name, c.number(c["beta"]))
    return c.do("Add", added, product)


@lowers("aten.cdist.default")
def cdist(c: Call) -> str:
    """Distances of each row of the one from each row of the other."""
    a, b, order = c["x1"], c["x2"], float(c["p"])
    away = c.do("Sub", c.do("Unsqueeze", a.name, c.graph.ints(-2)), c.do("Unsqueeze", b.name, c.graph.ints(-3)))
    last, kinds = c.graph.ints(-1), {1.0: "ReduceL1", 2.0: "ReduceL2"}
    if order in kinds:
        return c.do(kinds[order], away, last, keepdims=0)
    size = c.do("Abs", away)
    if order in (0.0, float("inf")):
        return c.do("ReduceMax" if order else "ReduceSum", size if order else c.do("Sign", size), last, keepdims=0)
    powers = c.do("ReduceSum", c.do("Pow", size, c.number(order)), last, keepdims=0)
    return c.do("Pow", powers, c.number(1 / order))


@lowers("aten.scaled_dot_product_attention.default")
def attention(c: Call) -> str:
    """``softmax(q k' * scale + mask) v``."""
    q, k, v = c["query"], c["key"], c["value"]
    if c.get("dropout_p", 0.0) or c.get("enable_gqa", False):
        raise OnnxExportError(f"{c.op} with grouped heads or dropout has no lowering to ONNX")
    rank = k.rank
    flipped = c.do("Transpose", k.name, perm=[*range(rank - 2), rank - 1, rank - 2])
    scale = c.get("scale")
    width = c.tensor(scale if scale is not None else q.known(q.rank - 1) ** -0.5, q.dtype)
    logits = c.do("MatMul", c.do("Mul", q.name, width), flipped)
    mask = c.get("attn_mask")
    if c.get("is_causal", False):
        mask = _causal(c, q, k)
    if mask is not None:
        name = mask.name if isinstance(mask, Value) else mask
        if not isinstance(mask, Value) or mask.dtype == torch.bool:
            name = c.do("Where", name, c.tensor(0.0, q.dtype), c.tensor(float("-inf"), q.dtype))
        logits = c.do("Add", logits, name)
    return c.do("MatMul", c.do("Softmax", logits, axis=-1), v.name)


def _causal(c: Call, q: Value, k: Value) -> str:
    """True where a key is not later than its query, [queries, keys]."""
    zero, one = c.graph.constant(0, "int64"), c.graph.constant(1, "int64")
    rows, cols = (
        c.graph.op("Range", zero, c.graph.op("Squeeze", c.size(value, value.rank - 2)), one) for value in (q, k)
    )
    return c.graph.op("GreaterOrEqual", c.graph.op("Unsqueeze", rows, c.graph.ints(1)), cols)


@lowers("aten.layer_norm.default")
def layer_norm(c: Call) -> str:
    """The same op; its scale is not optional."""
    x, normed = c["input"], list(c["normalized_shape"])
    weight, bias = c.get("weight"), c.get("bias")
    scale = weight.name if weight is not None else c.tensor(torch.ones(normed), x.dtype)
    shift = [bias.name] if bias is not None else []
    return c.do("LayerNormalization", x.name, scale, *shift, axis=-len(normed), epsilon=float(c["eps"]))


@lowers("aten.group_norm.default")
def group_norm(c: Call) -> str:
    """A norm of each group's values, then a scale per channel."""
    groups = c["num_groups"]
    return _normalised(c, c.join(c.size(c.x, 0), [groups, -1]), groups, float(c["eps"]))


@lowers("aten.instance_norm.default")
def instance_norm(c: Call) -> str | tuple[str, ...]:
    """A norm of each channel's values, or (in inference with running statistics) a scale."""
    if not c["use_input_stats"]:
        return batch_norm(c)
    channels = c.x.known(1)
    return _normalised(c, c.join(c.size(c.x, 0), [channels, -1]), channels, float(c["eps"]))


def _normalised(c: Call, shape: str, groups: int, epsilon: float) -> str:
    x = c.x
    one, zero = (c.tensor(torch.full((groups,), value), x.dtype) for value in (1.0, 0.0))
    normed = c.do("InstanceNormalization", c.reshape(x.name, shape), one, zero, epsilon=epsilon)
    result = c.reshape(normed, c.sizes(x))
    per_channel = c.graph.ints(-1, *[1] * (x.rank - 2))
    for name, kind in (("weight", "Mul"), ("bias", "Add")):
        if c.get(name) is not None:
            result = c.do(kind, result, c.reshape(c[name].name, per_channel))
    return result


@lowers("aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default")
def batch_norm(c: Call) -> str | tuple[str, ...]:
    """A norm with given statistics; what else it returns nothing reads."""
    x, channels = c.x, c.x.known(1)
    scale, shift = (
        c[name].name if c.get(name) is not None else c.tensor(torch.full((channels,), value), x.dtype)
        for name, value in (("weight", 1.0), ("bias", 0.0))
    )
    mean, var = c["running_mean"].name, c["running_var"].name
    result = c.do("BatchNormalization", x.name, scale, shift, mean, var, epsilon=float(c["eps"]))
    return result if len(c.results) == 1 else (result, *[""] * (len(c.results) - 1))
