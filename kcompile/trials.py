"""Random trials: positions and patches that reach every border case, and the patched images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from kcompile.core.interval import IntArray


def random_positions(image: Sequence[int], patch: Sequence[int], count: int, rng: np.random.Generator) -> IntArray:
    """Positions [count, axes], shuffled: corners, edges, some that stick out, the rest anywhere inside.

    Up to half of them are special ones: all corners, all corners moved out by half a patch, and one random spot on each
    edge. A quarter of the others may stick out by any amount that leaves a pixel on the image.

    Args:
        image: Size per axis, in pixels.
        patch: Size per axis, at most the image's.
        count: How many.
        rng: Where chance comes from.
    """
    last = np.subtract(image, patch)
    corners = [np.array(corner) for corner in product(*((0, end) for end in last))]
    outside = [corner + np.where(corner == 0, -1, 1) * (np.asarray(patch) // 2) for corner in corners]
    edges = []
    for axis, side in product(range(len(last)), (0, 1)):
        spot = rng.integers(0, last + 1)
        spot[axis] = side * last[axis]
        edges.append(spot)
    special = rng.permutation(np.stack([*corners, *outside, *edges]))[: (count + 1) // 2]
    others = count - len(special)
    inside = rng.integers(0, last + 1, size=(others - others // 4, len(last)))
    anywhere = rng.integers(1 - np.asarray(patch), image, size=(others // 4, len(last)))
    return rng.permutation(np.concatenate([special, inside, anywhere]).astype(np.int64))


def random_patches(images: Tensor, patch: Sequence[int], count: int, rng: np.random.Generator) -> Tensor:
    """Noise patches [count, C, *patch] with the images' own mean and spread, twice over, so that a model reacts.

    Args:
        images: [B, C, *S], give mean, spread, type and device.
        patch: Size per axis.
        count: How many.
        rng: Where chance comes from.
    """
    noise = torch.from_numpy(rng.standard_normal((count, images.shape[1], *patch), dtype=np.float32))
    values = images.float()
    spread = float(values.std()) or 1.0
    return (float(values.mean()) + 2 * spread * noise).to(images)


def paste(images: Tensor, patches: Tensor, positions: IntArray) -> Tensor:
    """Patched copies [N, C, *S] of images [N, C, *S]; what sticks out of a patch [N, C, *patch] is cropped."""
    patched = images.clone()
    for row, position in enumerate(positions.tolist()):
        image, patch = _slices(position, patches.shape[2:], images.shape[2:])
        patched[row][(slice(None), *image)] = patches[row][(slice(None), *patch)]
    return patched


def own_pixels(images: Tensor, positions: IntArray, sizes: Sequence[int]) -> Tensor:
    """Patches [N, C, *sizes] that change nothing: the images' own pixels at the positions, 0 outside."""
    patches = images.new_zeros((*images.shape[:2], *sizes))
    for row, position in enumerate(positions.tolist()):
        image, patch = _slices(position, sizes, images.shape[2:])
        patches[row][(slice(None), *patch)] = images[row][(slice(None), *image)]
    return patches


def _slices(position: Sequence[int], sizes: Sequence[int], image: Sequence[int]) -> tuple[list[slice], list[slice]]:
    """Where a patch lies on the image, and which part of the patch that is."""
    low = [max(at, 0) for at in position]
    high = [min(at + size, end) for at, size, end in zip(position, sizes, image, strict=True)]
    on_patch = [slice(a - at, b - at) for a, b, at in zip(low, high, position, strict=True)]
    return [slice(a, b) for a, b in zip(low, high, strict=True)], on_patch
