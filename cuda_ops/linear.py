"""``kcompile::read_linear``: a linear layer of whole maps of which patches change some cells; schema and reference.

The arguments before ``weight`` say what is read, as in `reads`; the window is the whole map.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kcompile.cuda_ops.reads import READ, READS, Read
from kcompile.cuda_ops.schema import LIBRARY

LIBRARY.define(f"read_linear({READ}, Tensor weight, Tensor? own, Tensor? before) -> Tensor")


def pack(weight: Tensor, cells: int) -> Tensor:
    """[cells, C, F] of a layer's [F, C * cells]: what a cell is multiplied by lies in one place."""
    features = weight.shape[0]
    return weight.detach().view(features, -1, cells).permute(2, 1, 0).contiguous()


class Layer(NamedTuple):
    """The layer.

    Attributes:
        weight: [cells, C, F], as `pack` makes them.
        own: [F], or None.
        before: [B, F], the bases' own results, or None: with them, a kernel need not read all weights.
    """

    weight: Tensor
    own: Tensor | None
    before: Tensor | None


def read_linear(*given: Any) -> Tensor:
    """The reference: the window, written out, times the weights; arguments as of `Read` and `Layer`.

    Returns:
        [N, F].
    """
    layer = Layer(*given[READS:])
    window = torch.ops.kcompile.read_activated(*given[:READS])
    rows = window.movedim(1, -1).reshape(window.shape[0], prod(window.shape[1:]))
    return functional.linear(rows, layer.weight.flatten(0, 1).t(), layer.own)


def of_bases(base: Tensor, weight: Tensor, own: Tensor | None, lows: list[int], extent: list[int]) -> Tensor:
    """``before`` [B, F]: the layer's results for the bases themselves.

    Args:
        base: [B, *padded sizes, C].
        weight: As `pack` makes them.
        own: [F], or None.
        lows: Padding before the map, per axis.
        extent: Cells of the map.
    """
    for axis, (first, size) in enumerate(zip(lows, extent, strict=True)):
        base = base.narrow(axis + 1, first, size)
    return functional.linear(base.reshape(base.shape[0], -1), weight.flatten(0, 1).t(), own)


def _fake_linear(*given: Any) -> Tensor:
    read, layer = Read(*given[:READS]), Layer(*given[READS:])
    return read.base.new_empty((read.origins.shape[0], layer.weight.shape[2]))


torch.library.register_fake("kcompile::read_linear", _fake_linear, lib=LIBRARY)
