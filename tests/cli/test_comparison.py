"""Which positions are held against full inference, and the verdict; where scores are NaN."""

from __future__ import annotations

import numpy as np
import pytest

from kcompile import Heatmap
from kcompile.comparison import judge, spread
from kcompile.grid import grid


def heat(scores: np.ndarray, stopped: bool) -> Heatmap:
    positions = grid((24, 32), (8, 8), 8)
    return Heatmap(scores, np.zeros(2), 0, positions, (8, 8), (24, 32), "logit", stopped=stopped)


@pytest.mark.parametrize("stopped", [False, True])
def test_what_a_stopped_map_lacks_is_not_compared_but_a_models_nan_is(stopped: bool, seed: int) -> None:
    scores = np.random.default_rng(seed).random((3, 4, 2)).astype(np.float32)
    scores[1] = np.nan
    scores[2, 3, 0] = np.nan
    positions, values = spread(heat(scores, stopped), 100)
    assert len(positions) == len(values) == (8 if stopped else 12)
    assert np.isnan(values).any(axis=1).sum() == (1 if stopped else 5)
    assert len(spread(heat(np.full_like(scores, np.nan), stopped), 5)[0]) == (0 if stopped else 5)


def test_half_are_where_the_score_changes_most(seed: int) -> None:
    scores = np.random.default_rng(seed).random((3, 4, 2)).astype(np.float32)
    scores[1, 2, 0], scores[0, 3, 0], scores[2, 1, 1] = -9, 5, 70  # the target is class 0
    made = heat(scores, stopped=False)
    positions, values = spread(made, 4)
    assert len(positions) == 4
    assert {tuple(at) for at in positions.tolist()} > {(8, 16), (0, 24)}
    assert {-9, 5} < set(values[:, 0].tolist())
    assert [tuple(at) for at in positions.tolist()] == sorted(tuple(at) for at in positions.tolist())
    everything, _ = spread(made, 12)
    np.testing.assert_array_equal(everything, made.positions.reshape(-1, 2))
    assert len(spread(made, 1)[0]) == 1


def test_nan_equals_nan_and_nothing_else(seed: int) -> None:
    full, base = np.random.default_rng(seed).random((5, 2)), np.zeros(2)
    quick = full.copy()
    full[2, 1] = np.nan
    assert judge(quick, full, base).word == "DIFFERENT"
    quick[2, 1] = np.nan
    found = judge(quick, full, base)
    assert found.word == "equal"
    assert (found.error, found.change) == (0, np.nanmax(full))
    quick[3] = np.nan
    assert judge(quick, full, base).word == "DIFFERENT"
    everywhere = np.full((5, 2), np.nan)
    assert judge(everywhere, everywhere, base).word == "void"
    assert judge(everywhere, full, base).word == "DIFFERENT"
    assert judge(full, np.where(np.isnan(full), 0, full) + 0.1, base).word == "DIFFERENT"
