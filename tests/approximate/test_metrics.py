"""Similarity of maps: scikit-image's on raw scores, absolute error for constant maps, and rendered."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

import kcompile
from kcompile.metrics import rendered_similarity, similarity


def a_map(seed: int, shape: tuple[int, ...] = (12, 9)) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, 2, shape).astype(np.float32)


def test_it_is_scikit_images_with_the_exact_maps_range(seed: int) -> None:
    exact, other = a_map(seed), a_map(seed + 1)
    expected = structural_similarity(
        exact.astype(float), other.astype(float), data_range=float(exact.max()) - float(exact.min())
    )
    assert similarity(exact, other) == pytest.approx(expected)
    assert similarity(other, exact) != pytest.approx(expected)  # the range is the exact map's alone


@pytest.mark.parametrize("shape", [(12, 9), (3, 5), (4, 4), (20,), (7, 8, 9)])
def test_equal_maps_are_wholly_similar_whatever_their_size(shape: tuple[int, ...], seed: int) -> None:
    exact = a_map(seed, shape)
    assert similarity(exact, exact) == pytest.approx(1)
    assert similarity(exact, a_map(seed + 1, shape)) < 0.9


@pytest.mark.parametrize(
    ("level", "error", "expected"),
    [(5.0, 0.0, 1.0), (5.0, 0.005, 0.9), (-5.0, 0.025, 0.5), (5.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1e-9, 0.0)],
)
def test_constant_maps_are_judged_by_their_absolute_error(level: float, error: float, expected: float) -> None:
    exact = np.full((8, 8), level)
    approximate = exact.copy()
    approximate[3, 4] += error
    assert similarity(exact, approximate) == pytest.approx(expected)
    assert similarity(exact + np.eye(8) * 1e-5 * level, approximate) == pytest.approx(expected, abs=2e-3)  # rounding


def test_a_small_structure_is_no_constant_map() -> None:
    exact = np.full((8, 8), 5.0)
    exact[2:5, 2:5] = 5.002
    assert similarity(exact, np.full((8, 8), 5.0)) < 0.9


def test_rendered_maps_are_coloured_over_the_exact_maps_range(seed: int) -> None:
    exact = a_map(seed)
    assert rendered_similarity(exact, exact) == pytest.approx(1)
    assert rendered_similarity(exact, 3 * exact + 1) < rendered_similarity(exact, exact + 0.05) < 1
    exact[6, 4] = exact.max() + 1
    beyond = exact.copy()
    beyond[6, 4] += 100  # beyond the scale: the same colour
    assert rendered_similarity(exact, beyond) == pytest.approx(1)
    assert similarity(exact, beyond) < 0.9
    assert rendered_similarity(np.ones((8, 8)), np.ones((8, 8))) == 1


@pytest.mark.parametrize("measure", [similarity, rendered_similarity])
@pytest.mark.parametrize(
    ("exact", "approximate", "message"),
    [
        (np.ones((4, 4)), np.ones((4, 5)), "same shape"),
        (np.ones((2, 9)), np.ones((2, 9)), "at least 3"),
        (np.ones(()), np.ones(()), "same shape"),
        (np.full((4, 4), np.nan), np.ones((4, 4)), "exact map has 16 scores"),
        (np.eye(4), np.diag([1, np.nan, np.inf, 1]), "approximate map has 2 scores"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(measure, exact, approximate, message) -> None:
    with pytest.raises(kcompile.InputError, match=message):
        measure(exact, approximate)


def test_only_maps_of_two_axes_can_be_rendered() -> None:
    with pytest.raises(kcompile.InputError, match="rendered"):
        rendered_similarity(np.ones(9), np.ones(9))
