"""Binomial and order-statistic bounds: against their definitions, brute force and simulation."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

import kcompile
from kcompile.bounds import certified, check_share, images_needed, order_interval, share_bound
from kcompile.estimate import draw, estimate


def tail(met: int, images: int, probability: float) -> float:
    """P(X >= met), summed."""
    return sum(comb(images, k) * probability**k * (1 - probability) ** (images - k) for k in range(met, images + 1))


@pytest.mark.parametrize("images", [1, 7, 22, 45])
@pytest.mark.parametrize(("coverage", "confidence"), [(0.9, 0.9), (0.5, 0.95), (0.8, 0.6)])
def test_the_test_is_the_exact_binomial_one(images: int, coverage: float, confidence: float) -> None:
    for met in range(images + 1):
        expected = tail(met, images, coverage) <= 1 - confidence
        assert certified(met, images, coverage, confidence) == expected
        assert (share_bound(met, images, confidence) >= coverage) == expected  # both say the same


def test_the_bound_is_where_the_tail_is_the_level() -> None:
    for met in range(1, 20):
        assert tail(met, 20, share_bound(met, 20, 0.9)) == pytest.approx(0.1)
    assert share_bound(0, 20, 0.9) == 0
    assert share_bound(20, 20, 0.9) == pytest.approx(0.1 ** (1 / 20))


@pytest.mark.parametrize(
    ("coverage", "confidence", "expected"), [(0.9, 0.9, 22), (0.95, 0.95, 59), (0.5, 0.5, 1), (0.5, 0.75, 2)]
)
def test_the_fewest_images(coverage: float, confidence: float, expected: int) -> None:
    assert images_needed(coverage, confidence) == expected
    assert certified(expected, expected, coverage, confidence)
    assert expected == 1 or not certified(expected - 1, expected - 1, coverage, confidence)
    assert expected == 1 or not certified(expected - 1, expected, coverage, confidence)


def test_a_false_certificate_is_as_rare_as_the_confidence_says(seed: int) -> None:
    """Settings that hold for 89 % of the images are certified for 90 % in at most 10 % of the cases."""
    met = np.random.default_rng(seed).binomial(60, 0.89, size=20_000)
    wrong = np.mean([certified(int(m), 60, 0.9, 0.9) for m in met])
    assert 0.005 < wrong < 0.1


@pytest.mark.parametrize(("met", "images"), [(-1, 5), (6, 5), (0, 0)])
def test_senseless_counts_are_refused(met: int, images: int) -> None:
    with pytest.raises(kcompile.InputError, match=f"{met} of {images}"):
        certified(met, images, 0.9, 0.9)
    with pytest.raises(kcompile.InputError, match=f"{met} of {images}"):
        share_bound(met, images, 0.9)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, "0.9", None, True])
def test_a_probability_lies_between_0_and_1(value: object) -> None:
    with pytest.raises(kcompile.InputError, match="coverage is"):
        check_share("coverage", value)  # type: ignore[arg-type]


# ---------------------------------------------------------------- order statistics


@pytest.mark.parametrize("population", [40, 300])
@pytest.mark.parametrize(("sampled", "share"), [(32, 0.9), (16, 0.75), (8, 0.5), (5, 0.5)])
@pytest.mark.parametrize("values", ["continuous", "tied", "heavy"])
def test_the_interval_holds_the_quantile_as_often_as_it_says(
    sampled: int, share: float, population: int, values: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    errors = {
        "continuous": rng.exponential(size=population),
        "tied": rng.integers(0, 3, size=population).astype(float),
        "heavy": rng.pareto(0.5, size=population),
    }[values]
    quantile = np.sort(errors)[int(np.ceil(share * population - 1e-9)) - 1]
    runs, held, within = 600, 0, 0
    for _ in range(runs):
        found = estimate(errors[draw(np.arange(population), sampled, int(rng.integers(2**31)))], population)
        held += found.low <= np.sort(errors)[int(np.ceil(found.share * population - 1e-9)) - 1] <= found.high
        within += found.share == share
    assert within == runs or population == 40  # small populations allow a larger share
    assert held / runs >= 0.9 - 3.5 * np.sqrt(0.09 / runs)
    assert quantile >= 0


def test_a_sample_of_everything_is_exact() -> None:
    for count in range(1, 12):
        low, high = order_interval(count, count, 0.9, 0.9) or (0, 0)
        assert low == high == int(np.ceil(0.9 * count))
    found = estimate([3.0, -1.0, 2.0], 3)
    assert found.error == found.low == found.high == found.largest == 3.0


def test_a_sample_too_small_has_no_interval() -> None:
    assert order_interval(4, 1000, 0.5, 0.9) is None
    assert order_interval(5, 1000, 0.5, 0.9) == (1, 5)
    with pytest.raises(kcompile.InputError, match=r"4 positions are sampled.*at least 5"):
        estimate([0.0] * 4, 1000)


@pytest.mark.parametrize(
    ("errors", "positions", "message"), [([1, np.nan], 9, "not all finite"), ([1, 2], 1, "2 errors of 1")]
)
def test_errors_that_say_nothing_are_refused(errors: list[float], positions: int, message: str) -> None:
    with pytest.raises(kcompile.InputError, match=message):
        estimate(errors, positions)


def test_a_draw_has_no_position_twice_and_repeats_with_its_seed() -> None:
    candidates = np.arange(10, 50)
    first, again, other = draw(candidates, 12, 3), draw(candidates, 12, 3), draw(candidates, 12, 4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first)) == 12
    assert set(first) <= set(candidates)
    assert np.array_equal(draw(candidates, 99, 0), candidates)
