"""Lowerings of convolutions."""

from __future__ import annotations

from typing import Any

from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx.call import Call, Value, dtype_of, lowers
from kcompile.passes.to_onnx.graph import Graph


@lowers("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default", "aten.conv1d.padding",
        "aten.conv2d.padding", "aten.conv3d.padding")  # fmt: skip
def conv(c: Call) -> str:
    """Padding that is known only at run time is 0 here: windows hold it."""
    if isinstance(c["groups"], Value):
        return _conv_by_rows(c)
    return c.do("Conv", *_operands(c), group=c["groups"], **_attributes(c))


def _attributes(c: Call) -> dict[str, Any]:
    axes = c["weight"].rank - 2
    kernel, dilation = [c["weight"].known(2 + i) for i in range(axes)], c.ints("dilation", axes)
    padding = c["padding"]
    if padding == "same":
        total = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = [0] * 2 * axes if padding == "valid" or isinstance(padding, Value) else c.ints("padding", axes, 0) * 2
    return {"kernel_shape": kernel, "strides": c.ints("stride", axes), "dilations": dilation, "pads": pads}


def _conv_by_rows(c: Call) -> str:
    """Groups that the batch is folded into (weights mixed by the image): a Scan over the rows.

    ONNX's number of groups is an attribute. What the graph multiplies the rows with, `Value.factor`, are the groups of
    one row.
    """
    x, weight, groups, rank, g = c["input"], c["weight"], c["groups"], c["input"].rank, c.graph
    each, kernel = groups.factor, weight.shape[1:]
    rows = g.op("Reshape", g.op("Div", groups.name, g.constant(each, "int64")), g.ints(-1))
    turned = [1, 0, *range(2, rank + 1)]  # rows first
    images = c.reshape(x.name, c.join(c.size(x, 0), rows, [each * weight.known(1)], c.sizes(x, 2)))
    scanned = {
        "row": (c.do("Transpose", images, perm=turned), x.dtype, [None, each * weight.known(1), *x.shape[2:]]),
        "weights": (c.reshape(weight.name, c.join(rows, [-1, *kernel])), weight.dtype, [None, *kernel]),
    }
    if c.get("bias") is not None:
        scanned["shift"] = c.reshape(c["bias"].name, c.join(rows, [-1])), weight.dtype, [None]
    body = Graph(g.weights, "row", g)
    names = [body.input(body.unique(name), dtype_of(dtype), shape) for name, (_, dtype, shape) in scanned.items()]
    result = body.op("Conv", *names, name=c.label, group=each, **_attributes(c))
    body.output(result, body.unique("result"), dtype_of(c.out.dtype), [None, None, *c.out.shape[2:]])
    given = [value for value, _, _ in scanned.values()]
    stacked = c.do("Scan", *given, body=body.proto(), num_scan_inputs=len(given))  # [rows, N, C, *cells]
    cells = c.sizes(c.out, 2) if None not in c.out.shape[2:] else g.op("Shape", stacked, start=3)
    return c.reshape(c.do("Transpose", stacked, perm=turned), c.join(c.size(x, 0), [-1], cells))


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
        raise OnnxExportError(f"{c.op} whose groups are as many as the queries has no lowering to ONNX")
    return int(c["groups"])


def _operands(c: Call) -> list[str]:
    return [c[name].name for name in ("input", "weight", "bias") if c.get(name) is not None]
