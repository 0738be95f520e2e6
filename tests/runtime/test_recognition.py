"""Recognition: rows of a batch against base images."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from kcompile.runtime.recognition import _lines, _lines_on_gpu, cut, recognise

SIZES = {1: (40,), 2: (11, 13), 3: (6, 8, 7)}
PATCH = {1: (5,), 2: (4, 3), 3: (2, 3, 4)}


def bases_of(axes: int, count: int = 1, channels: int = 3, last: bool = False) -> Tensor:
    bases = torch.randn(count, channels, *SIZES[axes])
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return bases.contiguous(memory_format=formats.get(bases.dim(), torch.contiguous_format)) if last else bases


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("axes", "last"), [(1, False), (2, False), (2, True), (3, False), (3, True)])
def test_boxes_are_found_wherever_they_are(axes: int, channels: int, last: bool, seed: int) -> None:
    """Every row has a random box: of the patch's size, smaller (then a box around it), or larger in one axis."""
    rng, sizes, patch = np.random.default_rng(seed), SIZES[axes], PATCH[axes]
    bases = bases_of(axes, 2, channels, last)
    images = bases.repeat(20, *[1] * (axes + 1))[:37]
    images = images.contiguous(memory_format=torch.channels_last) if last and axes == 2 else images
    low, high = np.zeros((37, axes), dtype=int), np.zeros((37, axes), dtype=int)
    for row in range(37):
        extent = rng.integers(1, np.array(patch) + 2)
        low[row] = rng.integers(0, np.subtract(sizes, extent) + 1)
        high[row] = low[row] + extent
        channel = slice(None) if row % 2 else int(rng.integers(channels))
        images[(row, channel, *map(slice, low[row], high[row]))] += 1.0
    got = recognise(images, bases, patch)
    fits = (high - low <= patch).all(axis=1)
    assert got.patched.tolist() == np.flatnonzero(fits).tolist()
    assert got.other.tolist() == np.flatnonzero(~fits).tolist()
    assert not len(got.same)
    assert (got.positions <= low[fits]).all()
    assert (got.positions + patch >= high[fits]).all()
    assert (got.positions >= 0).all()
    assert (got.positions + patch <= sizes).all()
    assert 0 < fits.sum() < 37, "void: rows of one kind only"


def test_cut_takes_each_rows_own_pixels() -> None:
    bases = bases_of(2)
    images = bases.repeat(3, 1, 1, 1)
    images[1, :, 3:6, 4:7] = 9.0
    images[2, 0, 10, 12] = 7.0
    rows = recognise(images, bases, (4, 3))
    assert rows.same.tolist() == [0]
    assert rows.patched.tolist() == [1, 2]
    patches = cut(images, rows.patched, rows.positions, (4, 3))
    for patch, row, (top, left) in zip(patches, rows.patched, rows.positions, strict=True):
        restored = bases[0].clone()
        restored[:, top : top + 4, left : left + 3] = patch
        assert torch.equal(restored, images[row])


def test_rows_go_round_the_bases() -> None:
    bases = bases_of(2, 3)
    images = bases[torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])].clone()
    images[4, :, 0, 0] += 1
    images[5] = bases[0]
    rows = recognise(images, bases, (4, 3))
    assert rows.same.tolist() == [0, 1, 2, 3, 6, 7]
    assert rows.patched.tolist() == [4]
    assert rows.other.tolist() == [5]
    fewer = recognise(images[:2], bases, (4, 3))
    assert fewer.same.tolist() == [0, 1]
    assert not recognise(bases.roll(1, 0), bases, (4, 3)).recognised


def test_values_are_compared_not_bits() -> None:
    """0.0 is -0.0; NaN is a difference, so that such a row never passes for its base."""
    base = torch.zeros(1, 1, 11, 13)
    base[..., 2, 2] = float("nan")
    images = torch.cat([base, -base, base])
    images[2, ..., 9, 9] = 1.0
    rows = recognise(images, base, (4, 3))
    assert rows.patched.tolist() == [0, 1]
    assert rows.other.tolist() == [2]
    zero = torch.zeros(1, 1, 11, 13)
    assert recognise(-zero, zero, (4, 3)).same.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    base = bases_of(2).to(dtype)
    images = torch.cat([base, base])
    images[1, 1, 5, 5] += 1
    rows = recognise(images, base, (4, 3))
    assert (rows.same.tolist(), rows.patched.tolist()) == ([0], [1])


def test_views_are_compared_where_they_lie() -> None:
    """Rows of any strides: every other row of a batch, flipped axes, an expanded image."""
    base = bases_of(2)
    images = base.repeat(4, 1, 1, 1)
    images[2, :, 1, 1] += 1
    assert recognise(images[::2], base, (4, 3)).patched.tolist() == [1]
    turned = images.transpose(2, 3).contiguous().transpose(2, 3)
    assert recognise(turned, base, (4, 3)).patched.tolist() == [2]
    assert recognise(base.expand(4, -1, -1, -1), base, (4, 3)).same.tolist() == [0, 1, 2, 3]


def test_indices_cover_every_row_once() -> None:
    bases = bases_of(2, 2)
    images = torch.cat([bases, torch.randn(3, 3, 11, 13), bases])
    rows = recognise(images, bases, (4, 3))
    together = np.sort(np.concatenate([rows.same, rows.patched, rows.other]))
    assert all(b == a + 1 for a, b in pairwise(together))
    assert len(together) == 7


def test_lines_on_a_gpu_are_those_on_the_cpu() -> None:
    """The other way to fold flags, which a GPU takes; here on the CPU."""
    differs = torch.rand(5, 3, 11, 13) < 0.01
    for mine, other in zip(_lines(differs), _lines_on_gpu(differs), strict=True):
        assert mine.any()
        assert (mine == other).all()
