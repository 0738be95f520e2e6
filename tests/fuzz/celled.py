"""Layers that compute each cell by itself, mix channels, or read the whole map."""

from __future__ import annotations

from tests.fuzz.description import Ref
from tests.fuzz.grow import Grower

_PLAIN = (
    "relu", "sigmoid", "tanh", "silu", "gelu", "leaky_relu", "hardswish", "elu", "relu6", "hardtanh", "mish",
    "softplus", "abs", "neg", "square", "hardsigmoid",
)  # fmt: skip


def activation(g: Grower, x: Ref) -> Ref:
    """An activation, or arithmetic with a number."""
    kind = g.whole(0, 3)
    if kind < 2:
        return g.call(f"{g.pick(_PLAIN)}.default", x)
    if kind == 2:
        return g.call("prelu.default", x, g.const("positive", g.channels(x) if g.chance(2) else 1))
    op, number = g.pick([("add.Tensor", 0.5), ("mul.Tensor", -1.5), ("sub.Tensor", 2), ("div.Tensor", 3.0),
                         ("clamp_min.default", -0.5), ("rsub.Scalar", 1.0)])  # fmt: skip
    return g.call(op, x, number)


def with_constant(g: Grower, x: Ref) -> Ref:
    """Arithmetic with a constant that broadcasts somehow, on either side."""
    full = [g.channels(x), *g.sizes(x)]
    shape = [size if g.chance(2) else 1 for size in full]
    shape = shape[g.whole(0, len(shape) - 1) :]
    if g.chance(4):
        shape = [1, *(size if g.chance(2) else 1 for size in full)]
    constant = g.const("positive", *shape)
    op = g.pick(["add.Tensor", "mul.Tensor", "sub.Tensor", "div.Tensor", "maximum.default", "minimum.default"])
    if g.chance(3) and op != "div.Tensor":
        return g.call(op, constant, x)
    return g.call(op, x, constant)


def channel_softmax(g: Grower, x: Ref) -> Ref:
    """Softmax, cumulated sums or norms over channels."""
    kind = g.whole(0, 2)
    if kind == 0:
        return g.call("softmax.int", x, 1)
    if kind == 1:
        return g.call("cumsum.default", x, 1)
    norm = g.call("linalg_vector_norm.default", x, 2.0, [1], True)
    return g.call("div.Tensor", x, g.call("add.Tensor", norm, 0.1))


def reduction(g: Grower, x: Ref) -> Ref:
    """A reduction over channels; those without the dimension may be outputs, or come back."""
    op = g.pick(["mean.dim", "sum.dim_IntList", "amax.default", "amin.default", "logsumexp.default"])
    if g.chance(2):
        y = g.call(op, x, [1], False)
        g.ends.append(y)
        return g.call("unsqueeze.default", y, 1)
    gate = g.call(op, x, [1], True)
    return g.call("mul.Tensor", x, g.call("sigmoid.default", gate)) if g.chance(2) else gate


def last_channels(g: Grower, x: Ref) -> Ref:
    """An NHWC block: permute, layer norm, linear, activation, permute."""
    c, axes = g.channels(x), list(range(2, g.axes + 2))
    y = g.call("permute.default", x, [0, *axes, 1])
    if g.chance(2) and c > 1:
        y = g.call("layer_norm.default", y, [c], g.const("positive", c), g.const("bias", c), 1e-5)
    wide = g.whole(1, 8)
    y = g.call("linear.default", y, g.const("weight", wide, c), g.const("bias", wide) if g.chance(2) else None)
    y = g.call("gelu.default", y) if g.chance(2) else y
    if g.chance(3):
        y = g.call("mul.Tensor", y, g.const("positive", wide))
        g.ends.append(y)
    return g.call("permute.default", y, [0, g.axes + 1, *range(1, g.axes + 1)])


def _split_channels(g: Grower, x: Ref, groups: int) -> Ref:
    """[B, C, *S] as [B, groups, C / groups, *S]; the batch is -1 or a size that was read."""
    batch = g.batch() if g.chance(2) else -1
    return g.call("reshape.default", x, [batch, groups, g.channels(x) // groups, *g.sizes(x)])


def shuffle_channels(g: Grower, x: Ref) -> Ref | None:
    """Groups of channels change places."""
    groups = [n for n in range(2, g.channels(x)) if g.channels(x) % n == 0]
    if not groups:
        return None
    y = g.call("transpose.int", _split_channels(g, x, g.pick(groups)), 1, 2)
    return g.call("reshape.default", y, [g.batch() if g.chance(2) else -1, g.channels(x), *g.sizes(x)])


def grouped_sum(g: Grower, x: Ref) -> Ref | None:
    """Split attention: a weighted sum over groups of channels."""
    groups = [n for n in range(2, g.channels(x) + 1) if g.channels(x) % n == 0]
    if not groups:
        return None
    y = _split_channels(g, x, g.pick(groups))
    if g.chance(2):
        y = g.call("mul.Tensor", y, g.call("softmax.int", y, 1))
    return g.call("sum.dim_IntList", y, [1])


def split(g: Grower, x: Ref) -> Ref | None:
    """Chunks of channels that are joined again, changed."""
    c = g.channels(x)
    if c < 2:
        return None
    first = g.whole(1, c - 1)
    if g.chance(2) or c % 2:
        parts = g.call("split_with_sizes.default", x, [first, c - first], 1)
    else:
        parts = g.call("split.Tensor", x, c // 2, 1)
    a, b = g.call("getitem", parts, 0), g.call("getitem", parts, 1)
    a = activation(g, a)
    if g.channels(a) == g.channels(b):
        how = g.whole(0, 2)
        if how == 1:
            return g.call("mul.Tensor", a, g.call("sigmoid.default", b))
        if how == 2:
            return g.call("mean.dim", g.call("stack.default", [a, b], g.whole(1, 2)), [g.whole(1, 2)])
    return g.call("cat.default", [b, a], 1)


def gate(g: Grower, x: Ref) -> Ref:
    """Squeeze and excitation: all of the map changes behind it."""
    c, space = g.channels(x), list(range(2, g.axes + 2))
    y = g.call("mean.dim", x, space, True)
    kernel = [1] * g.axes
    y = g.call(f"conv{g.axes}d.default", y, g.const("weight", c, c, *kernel), g.const("bias", c))
    return g.call("mul.Tensor", x, g.call("sigmoid.default", y))


def group_norm(g: Grower, x: Ref) -> Ref:
    """Group norm: statistics over space."""
    c = g.channels(x)
    groups = g.pick([n for n in range(1, c + 1) if c % n == 0])
    return g.call("group_norm.default", x, groups, g.const("positive", c), g.const("bias", c), 0.1)


def head(g: Grower, x: Ref) -> Ref:
    """A classifier: pooled or not, flattened, linear."""
    if g.chance(2):
        x = g.call("mean.dim", x, list(range(2, g.axes + 2)), True)
    y = g.call("flatten.using_ints", x, 1)
    wide = g.value(y).shape[1]
    y = g.call("linear.default", y, g.const("weight", 5, wide), g.const("bias", 5))
    return g.call("softmax.int", y, 1) if g.chance(3) else y
