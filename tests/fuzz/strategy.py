"""The strategy: random CNNs over all ops that have a spatial rule, as descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import celled, windowed
from tests.fuzz.description import Graph, Ref
from tests.fuzz.grow import Grower

Layer = Callable[[Grower, Ref], Ref | None]


def join(g: Grower, x: Ref) -> Ref | None:
    """Two maps of different strides, cropped or resized to one size, joined along channels or cell by cell."""
    y = g.pick(g.maps)
    small = [min(a, b) for a, b in zip(g.sizes(x), g.sizes(y), strict=True)]
    if g.chance(2):
        x, y = (_cropped(g, ref, small) for ref in (x, y))
    else:
        y = _resized(g, y, g.sizes(x))
    if g.channels(x) != g.channels(y):
        if g.channels(x) + g.channels(y) > 12 or g.chance(3):
            weight = g.const("weight", g.channels(x), g.channels(y), *[1] * g.axes)
            y = g.call(f"conv{g.axes}d.default", y, weight)
        else:
            return g.call("cat.default", [x, y], 1)
    return g.call(g.pick(["add.Tensor", "mul.Tensor", "sub.Tensor", "maximum.default"]), x, y)


def _cropped(g: Grower, x: Ref, sizes: list[int]) -> Ref:
    for axis, (size, want) in enumerate(zip(g.sizes(x), sizes, strict=True)):
        if size != want:
            start = g.whole(0, size - want)
            x = g.call("slice.Tensor", x, axis + 2, start, start + want)
    return x


def _resized(g: Grower, x: Ref, sizes: tuple[int, ...]) -> Ref:
    if g.sizes(x) == sizes:
        return x
    if g.axes == 2 and g.chance(2):
        return g.call("upsample_bilinear2d.vec", x, list(sizes), g.chance(2), None)
    return g.call(f"upsample_nearest{g.axes}d.vec", x, list(sizes), None)


# Weights: plain convolutions often; what makes everything behind it dense seldom.
LAYERS: list[tuple[int, Layer]] = [
    (8, windowed.conv), (3, windowed.conv_norm), (2, windowed.transposed), (5, windowed.pool), (2, windowed.adaptive),
    (3, windowed.pad), (3, windowed.cut), (3, windowed.resize), (2, windowed.shuffle_pixels), (2, windowed.move),
    (6, celled.activation), (4, celled.with_constant), (2, celled.channel_softmax), (2, celled.reduction),
    (3, celled.last_channels), (2, celled.shuffle_channels), (2, celled.grouped_sum), (2, celled.split),
    (1, celled.gate), (1, celled.group_norm), (8, join),
]  # fmt: skip
_CHOICES = [layer for weight, layer in LAYERS for _ in range(weight)]


@st.composite
def graphs(draw: Callable[..., Any]) -> Graph:
    """A random network with its image and patch sizes."""
    axes = draw(st.sampled_from([2, 2, 2, 2, 2, 2, 1, 3]))
    low, high = {1: (6, 24), 2: (6, 18), 3: (4, 7)}[axes]
    sizes = tuple(draw(st.integers(low, high)) for _ in range(axes))
    patch = tuple(min(draw(st.integers(1, 8)), size) for size in sizes)
    g = Grower(draw, (draw(st.integers(1, 4)), *sizes), patch, draw(st.integers(0, 2**20)))
    for _ in range(g.whole(1, 4) if g.chance(4) else g.whole(4, 10)):
        grow(g)
    if g.chance(4):
        g.ends.append(celled.head(g, g.maps[-1]))
    return g.done()


def grow(g: Grower) -> None:
    """One more layer: mostly on the last map, sometimes on an earlier one; none if it doesn't fit."""
    x = g.pick(g.maps[::-1]) if g.chance(4) else g.maps[-1]
    layer = g.pick(_CHOICES)
    before = len(g.calls)
    y = layer(g, x)
    if y is None or not g.shrunk(y):
        del g.calls[before:], g.values[before + 1 :]
        g.ends = [ref for ref in g.ends if ref.index <= before]
        g.maps.append(celled.activation(g, x))
        return
    g.maps.append(y)
