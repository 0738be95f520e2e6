"""Layers that read windows: convolutions, pools, padding, slices, resampling."""

from __future__ import annotations

from tests.fuzz.description import Ref
from tests.fuzz.grow import Grower


def _kernel(g: Grower, x: Ref, most: int = 5) -> list[int]:
    if g.chance(2):
        return [min(3, size) for size in g.sizes(x)]
    return [g.whole(1, min(most, size)) for size in g.sizes(x)]


def _per_axis(g: Grower, low: int, high: int) -> list[int]:
    """The same for all axes, or each its own."""
    if g.chance(2):
        return [g.whole(low, high) for _ in range(g.axes)]
    return [g.whole(low, high)] * g.axes


def _groups(g: Grower, channels: int) -> tuple[int, int]:
    """Groups and output channels: plain, depthwise or grouped."""
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    groups = g.pick(divisors) if g.chance(2) else 1
    return groups, groups * g.whole(1, max(1, 8 // groups))


def conv(g: Grower, x: Ref) -> Ref | None:
    """A convolution of any kind."""
    fits = [(op, rest) for op, rest in g.layers if rest[0].shape[1] * rest[-1] == g.channels(x)]
    if fits and g.chance(4):
        op, rest = g.pick(fits)  # a shared module
        spans = [(k - 1) * d + 1 - 2 * p for k, p, d in zip(rest[0].shape[2:], rest[3], rest[4], strict=True)]
        return g.call(op, x, *rest) if all(n >= s for n, s in zip(g.sizes(x), spans, strict=True)) else None
    kernel, (groups, cout) = _kernel(g, x), _groups(g, g.channels(x))
    stride = _per_axis(g, 1, 3) if g.chance(2) else [1] * g.axes
    dilation = _per_axis(g, 1, 3) if g.chance(4) else [1] * g.axes
    padding = _per_axis(g, 0, 3) if g.chance(3) else [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
    spans = [(k - 1) * d + 1 - 2 * p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    if any(n < s for n, s in zip(g.sizes(x), spans, strict=True)):
        return None
    weight = g.const("weight", cout, g.channels(x) // groups, *kernel)
    bias = g.const("bias", cout) if g.chance(2) else None
    if g.chance(8):
        mode = "same" if max(stride) == 1 else "valid"
        if mode == "valid" and any(n < (k - 1) * d + 1 for n, k, d in zip(g.sizes(x), kernel, dilation, strict=True)):
            return None
        return g.call(f"conv{g.axes}d.padding", x, weight, bias, stride, mode, dilation, groups)
    rest = (weight, bias, stride, padding, dilation, groups)
    g.layers.append((f"conv{g.axes}d.default", rest))
    return g.call(f"conv{g.axes}d.default", x, *rest)


def conv_norm(g: Grower, x: Ref) -> Ref | None:
    """A convolution with inference batch norm, folded later; or the norm alone."""
    y = conv(g, x) if g.chance(2) else x
    if y is None:
        return None
    c = g.channels(y)
    factors = (g.const("positive", c), g.const("bias", c)) if g.chance(2) else (None, None)
    normed = g.call("_native_batch_norm_legit_no_training.default", y, *factors, g.const("bias", c),
                    g.const("positive", c), 0.1, 1e-5)  # fmt: skip
    return g.call("getitem", normed, 0)


def transposed(g: Grower, x: Ref) -> Ref | None:
    """A transposed convolution."""
    kernel, stride = [g.whole(1, 4) for _ in range(g.axes)], _per_axis(g, 1, 3)
    dilation = _per_axis(g, 1, 2) if g.chance(4) else [1] * g.axes
    padding = [g.whole(0, (k - 1) * d) for k, d in zip(kernel, dilation, strict=True)]
    extra = [g.whole(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
    parts = zip(g.sizes(x), kernel, stride, padding, dilation, extra, strict=True)
    if any(not 1 <= (n - 1) * s - 2 * p + d * (k - 1) + e + 1 <= 30 for n, k, s, p, d, e in parts):
        return None
    groups, cout = _groups(g, g.channels(x))
    weight = g.const("weight", g.channels(x), cout // groups, *kernel)
    bias = g.const("bias", cout) if g.chance(2) else None
    overload = {1: "conv_transpose1d.default", 2: "conv_transpose2d.input", 3: "conv_transpose3d.input"}[g.axes]
    return g.call(overload, x, weight, bias, stride, padding, extra, groups, dilation)


def pool(g: Grower, x: Ref) -> Ref | None:
    """A max or average pool."""
    kernel, average = _kernel(g, x, 4), g.chance(2)
    stride = _per_axis(g, 1, 3)
    padding = [g.whole(0, k // 2) for k in kernel]
    ceil = g.chance(3)
    if average:
        rest: tuple[object, ...] = (kernel, stride, padding, ceil, not g.chance(2))
        if g.axes > 1 and g.chance(6):
            rest = (*rest, g.whole(1, 7))
        return g.call(f"avg_pool{g.axes}d.default", x, *rest)
    dilation = _per_axis(g, 1, 2) if g.chance(4) else [1] * g.axes
    parts = zip(g.sizes(x), kernel, padding, dilation, strict=True)
    if any(n + 2 * p < (k - 1) * d + 1 for n, k, p, d in parts):
        return None
    return g.call(f"max_pool{g.axes}d.default", x, kernel, stride, padding, dilation, ceil)


def adaptive(g: Grower, x: Ref) -> Ref | None:
    """An adaptive average pool, to any size."""
    sizes = [g.whole(1, size + (2 if g.chance(4) else 0)) for size in g.sizes(x)]
    return g.call(f"adaptive_avg_pool{g.axes}d.default", x, sizes)


def pad(g: Grower, x: Ref) -> Ref | None:
    """Padding of every mode; constant padding may crop, and pad the channels."""
    mode = g.pick(["constant", "replicate", "reflect", "circular"])
    most = {"constant": 3, "replicate": 3}.get(mode, 2)
    limits = [min(most, size - (mode == "reflect")) for size in reversed(g.sizes(x))]
    widths = [g.whole(0, limit) for limit in limits for _ in "ab"]
    if mode != "constant":
        return g.call("pad.default", x, widths, mode)
    if g.chance(3):
        crop = g.whole(0, 1)
        widths[crop] = -g.whole(0, limits[0] - 1)
    if g.chance(6):
        widths += [g.whole(0, 1), g.whole(0, 1)]
    return g.call("pad.default", x, widths, mode, g.pick([0.0, 1.5, -2.0]))


def cut(g: Grower, x: Ref) -> Ref | None:
    """A slice of space or of channels, with steps, from either end."""
    dim = g.whole(1, g.axes + 1)
    size = g.value(x).shape[dim]
    start = g.whole(0, size - 1)
    end = g.whole(start + 1, size)
    step = g.whole(1, 3) if g.chance(3) else 1
    ends = (start - size, end - size if end < size else 2**63 - 1) if g.chance(3) else (start, end)
    return g.call("slice.Tensor", x, dim, *ends, step)


def resize(g: Grower, x: Ref) -> Ref | None:
    """Interpolation of every kind, to a size or by a factor."""
    kinds = {1: ["nearest1d", "linear1d"], 2: ["nearest2d", "bilinear2d", "bicubic2d"], 3: ["nearest3d", "trilinear3d"]}
    kind = g.pick([*kinds[g.axes], f"nearest_exact{g.axes}d"])
    align = () if "nearest" in kind else (g.chance(2),)
    name = f"_upsample_{kind}.vec" if "exact" in kind else f"upsample_{kind}.vec"
    if g.chance(2):
        factors = [g.pick([2.0, 1.5, 0.5, 0.7]) for _ in range(g.axes)]
        if any(not 1 <= int(n * f) <= 30 for n, f in zip(g.sizes(x), factors, strict=True)):
            return None
        return g.call(name, x, None, *align, factors)
    return g.call(name, x, [g.whole(1, min(2 * n, 24)) for n in g.sizes(x)], *align, None)


def shuffle_pixels(g: Grower, x: Ref) -> Ref | None:
    """Depth to space, or space to depth."""
    if g.axes != 2:
        return None
    if max(g.sizes(x)) <= 15 and not g.chance(3):
        if g.channels(x) % 4:
            x = g.call("conv2d.default", x, g.const("weight", 4 * g.whole(1, 2), g.channels(x), 1, 1))
        return g.call("pixel_shuffle.default", x, 2)
    factor = g.pick([2, 3])
    if g.channels(x) > 3 or any(size % factor for size in g.sizes(x)):
        return None
    return g.call("pixel_unshuffle.default", x, factor)


def move(g: Grower, x: Ref) -> Ref | None:
    """Flip or roll along some axes."""
    dims = [2 + axis for axis in range(g.axes) if g.chance(2)] or [1 + g.axes]
    if g.chance(2):
        return g.call("flip.default", x, dims)
    return g.call("roll.default", x, [g.whole(-3, 3) or 1 for _ in dims], dims)
