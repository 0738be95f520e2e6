"""Queries as checked arrays: per box positions, patches and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcompile.core.checks import as_positions, check_base_index, check_positions, size_text
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray, Interval
from kcompile.core.plan import Plan
from kcompile.core.region import Region
from kcompile.runtime.patches import Source, channel_mask, mask_sources, patch_sources, pixels
from kcompile.runtime.queries import magnitude


@dataclass(frozen=True)
class Box:
    """One patched box of each query.

    Attributes:
        positions: [N, axes], of its first pixel.
        patches: What it shows.
        alpha: How much of that, or None for all.
        shown: [C, 1, …], 1 for the channels in which it shows, or None for all.
    """

    positions: IntArray
    patches: Source
    alpha: Source | None
    shown: Tensor | None

    def laid(self, rows: IntArray, images: Tensor, which: IntArray, at: IntArray) -> Tensor:
        """The pixels [n, C, *sizes] of some queries' boxes.

        Args:
            rows: The queries.
            images: What lies beneath.
            which: [n], each query's image.
            at: [n, axes], the box's place on it.
        """
        patch = self.patches.rows(rows)
        if self.alpha is None and self.shown is None:
            return patch
        below = pixels(images, which, at, self.patches.sizes)
        mask = patch.new_ones(()) if self.alpha is None else self.alpha.rows(rows)
        mask = mask if self.shown is None else mask * self.shown
        mixed = torch.lerp(below, patch, mask.expand_as(patch))
        return torch.where(mask == 0, below, torch.where(mask == 1, patch, mixed))  # 0 * inf is NaN


@dataclass(frozen=True)
class Queries:
    """The queries of one call.

    Attributes:
        boxes: One or two; the later lies over the earlier.
        base_index: [N], which base image each query is a copy of.
        largest: The patches' largest absolute value; infinite if one is NaN.
    """

    boxes: tuple[Box, ...]
    base_index: IntArray
    largest: float

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.base_index)

    def hull(self, image: Sequence[int]) -> Region:
        """The box around all boxes of each query, clipped to the image."""
        axes = []
        for axis, size in enumerate(image):
            low = np.min([box.positions[:, axis] for box in self.boxes], axis=0)
            high = np.max([box.positions[:, axis] + box.patches.sizes[axis] for box in self.boxes], axis=0)
            axes.append(Interval.of(low.clip(0, size), high.clip(0, size)))
        return Region.of(*axes)


def read_queries(
    plan: Plan, like: Tensor, bases: int, patches: Any, positions: Any, base_index: Any, mask: Any, channels: Any
) -> Queries:
    """Check what the user gave (see `IncrementalModule.forward_patches`).

    Args:
        plan: The plan.
        like: A tensor of the model's type and device.
        bases: Number of base images.
        patches: Patches.
        positions: Positions.
        base_index: Which base image each query is a copy of.
        mask: Alpha masks, or None.
        channels: The channels in which patches show, or None for all.

    Raises:
        InputError, PositionError: Bad patches, positions, masks, channels or base numbers.
    """
    where = as_positions(positions, len(plan.patch_shape))
    places = [where] if where.ndim == 2 else [where[:, 0], where[:, 1]]
    count, boxes = len(where), len(places)
    alphas = [None] * boxes if mask is None else mask_sources(mask, plan, count, like, boxes)
    fill = alphas[0].sizes if alphas[0] is not None else None
    sources = patch_sources(patches, plan, count, like, boxes, fill)
    shown = None if channels is None else channel_mask(channels, plan, like)
    one = np.zeros(1, dtype=np.int64)  # a number may become infinite in the model's type
    largest = max([magnitude(patches), *(magnitude(source.rows(one)) for source in sources if source.constant)])
    made = []
    for place, source, alpha in zip(places, sources, alphas, strict=True):
        if alpha is not None and alpha.sizes != source.sizes:
            raise InputError(
                f"the mask is {size_text(alpha.sizes)}, the patch {size_text(source.sizes)}: they must agree"
            )
        check_positions(place, plan, source.sizes)
        made.append(Box(place, source, alpha, shown))
    return Queries(tuple(made), check_base_index(base_index, count, bases), largest)
