"""Projective field thresholding: regions are cropped around the middle of what a patch can reach (Krypton section 4.1).

Krypton's eq. 23-29 crop by one share tau of the map's width, in the middle of the region as the borders clip it; here
the middle is that of the patch itself, carried through the layers (`core.region.CroppedRegion`), and each axis is
cropped by its own size. Regions behind a cropped one are made of what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from kcompile.passes.propagate import Limits


def share_of_the_map(tau: float) -> Limits:
    """No region is wider than this share of its map, per axis, rounded, at least one cell (eq. 24-25)."""

    def limits(node: fx.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(1, int(tau * size + 0.5)) for size in shape)

    return limits


def by_layer(cells: Mapping[str, tuple[int, ...]]) -> Limits:
    """No region of a named node is wider than its own number of cells per axis; others are not cropped."""

    def limits(node: fx.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
        return cells.get(node.name, shape)

    return limits


def smallest(rules: Sequence[Limits]) -> Limits:
    """The least number of cells per axis that any of some rules allows."""

    def limits(node: fx.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(min(axis) for axis in zip(*(rule(node, shape) for rule in rules), strict=True))

    return limits
