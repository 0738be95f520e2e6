"""Lattices, interpolation, Krypton's equations of drill-down, and which cells are chosen."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import kcompile
from kcompile.drilldown import Refinement, first_step, shares
from kcompile.lattice import (
    cells_of,
    coarse_stride,
    corner_range,
    interpolate,
    ladder,
    lines_of,
    nodes,
    position_speedup,
    within,
)


@pytest.mark.parametrize("grid", [(13, 9), (1, 5), (8,), (4, 5, 6), (1, 1)])
@pytest.mark.parametrize("step", [1, 2, 3, 6, 8, 50])
def test_each_lattice_lies_in_the_next_and_spans_the_grid(grid: tuple[int, ...], step: int) -> None:
    steps = ladder((step,) * len(grid))
    assert steps[-1] == (1,) * len(grid)
    lattices = [lines_of(grid, each) for each in steps]
    for lines in lattices:
        assert [(int(at[0]), int(at[-1])) for at in lines] == [(0, size - 1) for size in grid]
    assert nodes(lattices[-1], grid).all()
    for coarse, fine in pairwise(lattices):
        assert not (nodes(coarse, grid) & ~nodes(fine, grid)).any()


@pytest.mark.parametrize(
    ("step", "levels", "expected"),
    [
        (8, None, [8, 4, 2, 1]),
        (8, 2, [8, 1]),
        (8, 3, [8, 4, 1]),
        (8, 9, [8, 4, 2, 1]),
        (1, 2, [1]),
        (12, 3, [12, 6, 1]),
        (3, 3, [3, 1]),
        (9, None, [9, 3, 1]),
    ],
)
def test_a_ladder_halves_and_ends_at_one(step: int, levels: int | None, expected: list[int]) -> None:
    assert [one[0] for one in ladder((step,), levels)] == expected


@pytest.mark.parametrize("grid", [(13, 10), (5, 1), (3, 4), (2, 9), (7,), (4, 5, 6)])
def test_interpolation_is_exact_for_planes_and_at_known_positions(grid: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse, fine = lines_of(grid, (3,) * len(grid)), lines_of(grid, (1,) * len(grid))
    slope = rng.normal(size=(len(grid), 2))
    plane = np.tensordot(np.moveaxis(np.indices(grid), 0, -1), slope, axes=1) + 5
    assert np.allclose(interpolate(plane[np.ix_(*coarse)], coarse, fine), plane)
    noise = rng.normal(size=(*grid, 2))
    found = interpolate(noise[np.ix_(*coarse)], coarse, fine)
    assert np.array_equal(found[np.ix_(*coarse)], noise[np.ix_(*coarse)])


def test_interpolation_of_a_smooth_map_gains_with_every_level() -> None:
    rows, cols = np.meshgrid(np.linspace(0, 6, 49), np.linspace(0, 6, 49), indexing="ij")
    smooth = (np.sin(rows) * np.cos(cols))[..., None]
    fine = lines_of((49, 49), (1, 1))
    errors = []
    for step in (16, 8, 4, 2):
        lines = lines_of((49, 49), (step, step))
        errors.append(np.abs(interpolate(smooth[np.ix_(*lines)], lines, fine) - smooth).max())
    assert all(a > 3 * b for a, b in pairwise(errors))


def test_nan_stays_in_its_class() -> None:
    values = np.ones((5, 5, 2))
    values[2, 2, 1] = np.nan
    lines, fine = lines_of((9, 9), (2, 2)), lines_of((9, 9), (1, 1))
    found = interpolate(values, lines, fine)
    assert np.isfinite(found[..., 0]).all()
    assert np.isnan(found[4, 4, 1])


# ---------------------------------------------------------------- Krypton's equations


@pytest.mark.parametrize(
    ("stride", "share", "speedup", "size", "expected"),
    [(4, 0.25, 3, 224, 16), (4, 0.1, 5, 224, 16), (4, 0.4, 2, 224, 16), (1, 0.25, 3, 224, 4), (4, 0.25, 1, 224, 8)],
)
def test_the_first_stride_is_that_of_equation_31_rounded_up(
    stride: int, share: float, speedup: float, size: int, expected: int
) -> None:
    found = coarse_stride(stride, share, speedup, size)
    assert found == expected
    assert position_speedup(stride, found, share) >= speedup - 1e-9
    assert position_speedup(stride, found - stride, share) < speedup


def test_equation_30() -> None:
    assert position_speedup(4, 16, 0.25) == pytest.approx(16**2 / (4**2 + 0.25 * 16**2))


@pytest.mark.parametrize(("share", "speedup"), [(0.25, 4), (0.25, 0.5), (0.001, 3000), (0.5, 2)])
def test_speedups_that_equation_32_rules_out_are_refused(share: float, speedup: float) -> None:
    with pytest.raises(kcompile.InputError, match=r"speedup is .*; allowed is 1 <= speedup < [\d.e+]+"):
        coarse_stride(4, share, speedup, 224)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9, 0.999])
def test_the_first_step_without_a_stride_of_the_users_saves_positions(share: float) -> None:
    (step,) = first_step((4,), share, None)
    assert 2 <= step <= 4
    assert position_speedup(1, step, share) >= min(3, 0.75 / share) - 1e-9
    assert first_step((4, 8), share, 16) == (4, 2)
    assert first_step((4, 8), share, 3) == (1, 1)


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_the_shares_of_the_levels_narrow_down_to_that_of_the_map(levels: int) -> None:
    found = shares(0.1, levels)
    assert len(found) == levels - 1
    assert found == sorted(found, reverse=True)
    assert not found or found[-1] == pytest.approx(0.1)


# ---------------------------------------------------------------- cells


def test_corners_of_cells() -> None:
    low, high = corner_range(np.arange(6.0).reshape(2, 3))
    assert low.tolist() == [[0, 1]]
    assert high.tolist() == [[4, 5]]
    low, high = corner_range(np.array([[3.0, np.nan, 5.0]]))
    assert np.isnan(low).all()
    assert corner_range(np.array([[2.0]]))[0].tolist() == [[2.0]]


def test_chosen_cells_are_refined_with_their_borders() -> None:
    lines, fine = lines_of((7, 7), (3, 3)), lines_of((7, 7), (1, 1))
    cells = np.zeros(cells_of(lines), dtype=bool)
    cells[0, 1] = True
    mask = within(cells, lines, fine, (7, 7))
    assert mask.sum() == 16
    assert mask[:4, 3:].all()


def known(values: np.ndarray, step: int, classes: int = 1) -> Refinement:
    state = Refinement(values.shape[:2], classes, ladder((step, step)))
    state.put(np.flatnonzero(state.first()), values[state.first()])
    return state


def test_drill_down_goes_where_the_score_falls_and_where_it_changes() -> None:
    values = np.zeros((9, 9, 1))
    values[:, 4:] = 2.0  # a step up: the change
    values[6:, :2] = -1.0  # a fall, smaller
    base = np.zeros(1)
    falls = known(values, 4).chosen(0, 0.25, base, [0], interest="drop")
    assert falls[4:, :4].any()
    assert not falls[:4].any()
    changes = known(values, 4).chosen(0, 0.25, base, [0])
    assert changes[:, :5].any()
    assert np.array_equal(known(values, 4).chosen(0, 1e-9, base, [0], interest="drop"), falls)  # at least one cell
    assert not known(values, 4).chosen(0, 1.0, base, [0])[::4, ::4].any()  # not again


def test_of_several_classes_each_one_counts() -> None:
    values = np.zeros((9, 9, 2))
    values[0, 0, 0], values[8, 8, 1] = -1.0, -3.0
    one, two = (known(values, 4, 2).chosen(0, 0.25, np.zeros(2), [target]) for target in (0, 1))
    both = known(values, 4, 2).chosen(0, 0.5, np.zeros(2), [0, 1])
    assert np.array_equal(both, one | two)


def test_what_is_computed_stays_and_nan_is_never_chosen() -> None:
    values = np.random.default_rng(0).normal(size=(9, 9, 1))
    values[0, 0] = np.nan
    state = known(values, 4)
    chosen = state.chosen(0, 1.0, np.zeros(1), [0])
    assert not chosen[:4, :4].any()
    state.put(np.flatnonzero(chosen), values[chosen])
    found = state.map()
    assert np.array_equal(found[state.known], values.astype(np.float32)[state.known], equal_nan=True)
