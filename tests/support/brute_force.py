"""Brute force on small maps: what a region and a window must be, seen from the plain model alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kcompile.core.interval import IntArray
from kcompile.core.region import Region
from kcompile.passes.pipeline import Compiled
from tests.support.op_table import Case
from tests.support.running import (
    Runner,
    cells_of,
    hull_of,
    last_incremental,
    paste,
    positions_inside,
    positions_touching,
    regions_at,
)  # fmt: skip

TRIALS = 8  # perturbations per position
ROUNDS = 8  # images tried at most: a ReLU may stay closed for one of them


def random_images(case: Case, count: int) -> Tensor:
    """Images in the op's domain."""
    noise = torch.rand(count, *case.shape) + 0.5 if case.positive else torch.randn(count, *case.shape)
    return noise.double() * case.scale + case.offset


def random_patches(case: Case, count: int, patch: Sequence[int]) -> Tensor:
    """Patches far from the images: row i of each `TRIALS` is all above, all below, or of random signs."""
    size = torch.empty(count, case.shape[0], *patch, dtype=torch.float64).uniform_(4.0, 9.0)
    if case.positive:
        return size
    signs = torch.where(torch.rand_like(size) < 0.5, -1.0, 1.0)
    signs[0::TRIALS], signs[1::TRIALS] = 1.0, -1.0
    return size * signs * case.scale + case.offset


def check_sound(model: nn.Module, region: Region, positions: IntArray, base: Tensor, patch: Sequence[int]) -> None:
    """NaN in the patch gives none outside of the region."""
    images = base.expand(len(positions), *base.shape[1:])
    poison = base.new_full((len(positions), base.shape[1], *patch), float("nan"))
    with torch.no_grad():
        bad = model(paste(images, poison, positions)).isnan().any(1)
    assert not (bad & ~cells_of(region, bad.shape[1:])).any(), "NaN left the region"


def check_sufficient(model: nn.Module, region: Region, window: Region, base: Tensor) -> None:
    """NaN outside of the window gives none inside the region."""
    inside = cells_of(window, base.shape[2:]).unsqueeze(1)
    with torch.no_grad():
        bad = model(torch.where(inside, base, float("nan"))).isnan().any(1)
    assert not (bad & cells_of(region, bad.shape[1:])).any(), "an output reads beyond its window"


def changed_cells(model: nn.Module, case: Case, positions: IntArray, base: Tensor, patch: Sequence[int]) -> Tensor:
    """Which cells [N, *sizes] some large perturbation of the patch changes."""
    rows = np.repeat(positions, TRIALS, axis=0)
    images = base.expand(len(rows), *base.shape[1:])
    patched = paste(images, random_patches(case, len(rows), patch), rows)
    with torch.no_grad():
        outputs = model(torch.cat([base, patched]))
    changes = (outputs[1:] - outputs[:1]).abs().amax(1) > 1e-9 * outputs.abs().max()
    return changes.unflatten(0, (len(positions), TRIALS)).any(1)


def check_region(model: nn.Module, compiled: Compiled, case: Case, patch: Sequence[int], exact: bool) -> None:
    """The last layer's region against all three proofs, at every position inside the image."""
    base = random_images(case, 1)
    positions = positions_inside(case.shape[1:], patch)
    number = last_incremental(compiled).region
    assert number is not None
    region = regions_at(compiled, positions, patch)[number]
    check_sound(model, region, positions, base, patch)
    changed = changed_cells(model, case, positions, base, patch)
    assert changed.any(), "void: the op does not react"
    predicted = cells_of(region, changed.shape[1:])
    for _ in range(ROUNDS):
        assert not (hull_of(changed) & ~predicted).any(), "a cell outside of the region changes"
        if not exact or torch.equal(hull_of(changed), predicted):
            return
        changed |= changed_cells(model, case, positions, random_images(case, 1), patch)
    raise AssertionError("the region is larger than the change")


def windows_of_image(compiled: Compiled, region: Region, patch: Sequence[int], positions: IntArray) -> Region:
    """What the reads of the image ask for: their windows' hull; the region itself where no read is left."""
    regions = regions_at(compiled, positions, patch)
    sources = {base.name: base.source for base in compiled.plan.bases}
    window = None
    for read in compiled.plan.reads:
        if read.target and sources[read.base] == compiled.plan.layers[0].name:
            mine = regions[read.target].window(read.maps)
            window = mine if window is None else window | mine
    return region if window is None else window


def check_window(model: nn.Module, compiled: Compiled, case: Case, patch: Sequence[int]) -> None:
    """For a model of one op: its window suffices, at every position that touches the image."""
    positions = positions_touching(case.shape[1:], patch)
    number = last_incremental(compiled).region
    assert number is not None
    region = regions_at(compiled, positions, patch)[number]
    check_sufficient(model, region, windows_of_image(compiled, region, patch, positions), random_images(case, 1))


def check_end_to_end(model: nn.Module, compiled: Compiled, case: Case, patch: Sequence[int]) -> None:
    """Incremental output equals full output at every position that touches the image, for two base images.

    All positions run in one batch, so that extents mix; then some of them alone. Errors are held against the change.
    """
    positions = positions_touching(case.shape[1:], patch)
    index = np.random.default_rng(torch.randint(2**31, ()).item()).integers(0, 2, len(positions))
    bases, patches = random_images(case, 2), random_patches(case, len(positions), patch)
    with torch.no_grad():
        full = flat(model(paste(bases[index], patches, positions)))
        before = [out[index] for out in flat(model(bases))]
    close_to_full(Runner.of(compiled, bases)(patches, positions, index), full, before)
    first = np.flatnonzero(index == 0)
    single = Runner.of(compiled, bases[:1])  # one base image, one query: where a kernel may take shortcuts
    for i in first[torch.randint(len(first), (5,)).numpy()].tolist():
        one = slice(i, i + 1)
        alone = single(patches[one], positions[one])
        close_to_full(alone, [out[one] for out in full], [out[one] for out in before], must_react=False)


def flat(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One output or several, as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def close_to_full(mine: list[Tensor], full: list[Tensor], before: list[Tensor], must_react: bool = True) -> None:
    """Errors are at most 1e-6 of each query's own change (of a thousandth of the largest change, if that is more)."""
    for got, want, base in zip(mine, full, before, strict=True):
        change = (want - base).abs().flatten(1).amax(1)
        if must_react:
            assert change.max() >= 1e-3 * want.abs().max(), "void: the network does not react to the patch"
        scale = torch.maximum(change, 1e-3 * change.max()) if must_react else change.clamp(min=1e-6 * want.abs().max())
        error = (got - want).abs().flatten(1).amax(1)
        assert (error <= 1e-6 * scale).all(), f"largest error {error.max():.3g}, change {change.max():.3g}"
