"""Lowerings of convolutions, linear layers, products of matrices, and norms."""

from __future__ import annotations

import torch

from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx.call import Call, Value, lowers


@lowers("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default", "aten.conv1d.padding",
        "aten.conv2d.padding", "aten.conv3d.padding")  # fmt: skip
def conv(c: Call) -> str:
    """Padding that is known only at run time is 0 here: windows hold it."""
    axes = c["weight"].rank - 2
    kernel, dilation = [c["weight"].known(2 + i) for i in range(axes)], c.ints("dilation", axes)
    padding = c["padding"]
    if padding == "same":
        total = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = [0] * 2 * axes if padding == "valid" or isinstance(padding, Value) else c.ints("padding", axes, 0) * 2
    return c.do("Conv", *_operands(c), kernel_shape=kernel, strides=c.ints("stride", axes), dilations=dilation,
                group=_groups(c), pads=pads)  # fmt: skip


@lowers("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(c: Call) -> str:
    """The same op."""
    axes = c["weight"].rank - 2
    return c.do(
        "ConvTranspose", *_operands(c), kernel_shape=[c["weight"].known(2 + i) for i in range(axes)],
        strides=c.ints("stride", axes), dilations=c.ints("dilation", axes), group=_groups(c),
        pads=c.ints("padding", axes, 0) * 2, output_padding=c.ints("output_padding", axes, 0),
    )  # fmt: skip


def _groups(c: Call) -> int:
    """ONNX's groups are an attribute: those that the batch is folded into (mixed weights) can't be told."""
    if not isinstance(c["groups"], int):
        raise OnnxExportError(f"{c.op} with as many groups as there are queries has no lowering to ONNX")
    return int(c["groups"])


def _operands(c: Call) -> list[str]:
    return [c[name].name for name in ("input", "weight", "bias") if c.get(name) is not None]


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
