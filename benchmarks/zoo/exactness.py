"""Incremental against full inference of really patched images, output by output."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import kcompile
from kcompile.core.interval import IntArray

OWN_ROUNDING = 30.0  # a rounding in each of many layers, against one of the image's pixels
ALLOWED = {torch.float32: 1e-4, torch.float64: 1e-6}  # of max|full|; of the change
LEAST_CHANGE = 1e-3
_NOISE = (1.0, 3.0, 10.0)  # sizes of the patches' noise, until one changes the output


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        error: The largest difference, as a share of max|full|.
        change: The largest difference that the patches make, as a share of max|full|; of the output with the least.
        noise: The size of the patches' noise.
        dtype: The type that both sides ran in.
        rounding: What one rounding of the images' pixels changes in full inference, as a share of max|full|; measured
            where the error is beyond what is allowed of any network.
    """

    error: float
    change: float
    noise: float
    dtype: torch.dtype
    rounding: float = 0.0

    @property
    def within(self) -> bool:
        """True if the error is within what is allowed of any network."""
        return self.error <= ALLOWED[self.dtype] * (self.change if self.dtype is torch.float64 else 1.0)

    @property
    def status(self) -> str:
        """Exact, wrong, or void: the network didn't react, so nothing is known.

        Deep networks with random weights amplify rounding, some by 1e12: there the plain model's own reaction to images
        that are rounded differently is the measure.
        """
        chaotic = self.error <= min(OWN_ROUNDING * self.rounding, 0.01 * self.change)
        if not (self.within or (self.dtype is torch.float64 and chaotic)):
            return "wrong"
        return "exact" if self.change >= LEAST_CHANGE else "void"


def compare(inc: kcompile.IncrementalModule, model: nn.Module, image: Tensor, positions: IntArray) -> Compared:
    """Noise patches at the positions; larger noise where the network doesn't react."""
    for noise in _NOISE:
        found = _compare(inc, model, image, positions, noise)
        if found.status != "void":
            break
    return found


@torch.no_grad()
def _compare(
    inc: kcompile.IncrementalModule, model: nn.Module, image: Tensor, positions: IntArray, noise: float
) -> Compared:
    patches = torch.randn(len(positions), len(image), *inc.plan.patch_shape, dtype=image.dtype) * noise
    base = inc.materialize(image)
    got = inc.forward_patches(patches, positions)
    full = model(patched(image, patches, positions))
    error, change, rounding = 0.0, float("inf"), 0.0
    for mine, want, before in zip(*map(pytree.tree_leaves, (got, full, base)), strict=True):
        scale = float(want.abs().max())
        error = max(error, _largest(mine - want) / scale)
        change = min(change, _largest(want - before) / scale)
    found = Compared(error, change, noise, image.dtype)
    if not found.within:
        images = patched(image, patches, positions)
        other = model(images * (1 + torch.finfo(image.dtype).eps * torch.randn_like(images)))
        for want, also in zip(pytree.tree_leaves(full), pytree.tree_leaves(other), strict=True):
            rounding = max(rounding, _largest(also - want) / float(want.abs().max()))
    return replace(found, rounding=rounding)


def _largest(difference: Tensor) -> float:
    """The largest absolute value; infinite if any is NaN."""
    return float(difference.abs().nan_to_num(nan=float("inf")).max())


def patched(image: Tensor, patches: Tensor, positions: IntArray) -> Tensor:
    """Copies [N, C, H, W] of an image [C, H, W] with patch i at position i, cropped to the image."""
    copies = image.repeat(len(positions), 1, 1, 1)
    (rows, cols), (height, width) = patches.shape[-2:], image.shape[-2:]
    for copy, patch, (top, left) in zip(copies, patches, positions.tolist(), strict=True):
        inside = patch[:, max(-top, 0) : height - top, max(-left, 0) : width - left]
        copy[:, max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + cols, 0)] = inside
    return copies


def some_positions(image: tuple[int, ...], patch: tuple[int, ...], rng: np.random.Generator) -> IntArray:
    """Six positions [6, 2]: two opposite corners, one that sticks out, an edge, an odd place, anywhere."""
    last = np.subtract(image, patch)
    corner = rng.integers(0, 2, 2)
    outside = np.where(corner > 0, last, 0) + np.where(corner > 0, 1, -1) * rng.integers(1, patch)
    edge = rng.integers(0, last + 1)
    axis = rng.integers(2)
    edge[axis] = rng.integers(0, 2) * last[axis]
    odd = rng.integers(0, (last + 1) // 2) * 2 + 1
    places = [corner * last, (1 - corner) * last, outside, edge, odd, rng.integers(0, last + 1)]
    return rng.permutation(np.stack(places)).astype(np.int64)
