"""Selection and certification on different images; false certificates are as rare as promised."""

from __future__ import annotations

import numpy as np
import pytest

import kcompile
from kcompile.search import split
from kcompile.selection import Trial, certify, sequence


def trial(name: str, cost: float, *qualities: float) -> Trial[str]:
    return Trial(name, np.array(qualities), cost)


# ---------------------------------------------------------------- the sequence


def test_the_sequence_is_the_front_from_the_safest_to_the_fastest() -> None:
    trials = [
        trial("fast", 0.1, 0.91, 0.92, 0.95, 0.97),
        trial("slower, no better", 0.2, 0.90, 0.92, 0.95, 0.97),
        trial("safe", 0.5, 0.99, 0.99, 0.99, 0.99),
        trial("middle", 0.3, 0.95, 0.96, 0.97, 0.97),
        trial("bad", 0.01, 0.5, 0.99, 0.99, 0.99),
        trial("slower than exact", 1.2, 1.0, 1.0, 1.0, 1.0),
        trial("broken", 0.01, -np.inf, -np.inf, -np.inf, -np.inf),
    ]
    assert [t.candidate for t in sequence(trials, 0.9, 0.9)] == ["safe", "middle", "fast"]
    assert [t.candidate for t in sequence(trials, 0.9, 0.9, most=2)] == ["safe", "fast"]
    assert [t.candidate for t in sequence(trials, 0.995, 0.9)] == []
    assert [t.candidate for t in sequence([], 0.9, 0.9)] == []


def test_a_share_of_misses_is_allowed_where_the_coverage_allows_it() -> None:
    trials = [trial("one of four", 0.1, 0.5, 0.99, 0.99, 0.99)]
    assert sequence(trials, 0.9, 0.75)
    assert not sequence(trials, 0.9, 0.76)


def qualities(met: int, images: int = 30) -> np.ndarray:
    return np.where(np.arange(images) < met, 0.95, 0.5)


def test_certification_stops_at_the_first_that_does_not_hold() -> None:
    looked: list[int] = []

    def evaluate(met: int) -> np.ndarray:
        looked.append(met)
        return qualities(met)

    verdicts = certify([30, 30, 25, 30], evaluate, 0.9, 0.9, 0.9)
    assert looked == [30, 30, 25]
    assert [v.holds for v in verdicts] == [True, True, False]
    assert verdicts[-1].worst == 0.5
    assert verdicts[0].bound == pytest.approx(0.1 ** (1 / 30))


def test_a_quality_equal_to_the_target_meets_it() -> None:
    (verdict,) = certify(["same"], lambda _: np.full(30, 0.9), 0.9, 0.9, 0.9)
    assert verdict.met == 30
    assert verdict.holds


def test_false_certificates_of_a_whole_search_are_rare(seed: int) -> None:
    """Twelve settings, none of which holds for 90 %: selected and certified, hardly ever wrong in more than 10 %."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.8, 0.899, size=12)
    runs, wrong = 400, 0
    for _ in range(runs):
        first = [trial(str(i), 0.01 * (i + 1), *np.where(rng.random(40) < p, 1.0, 0.0)) for i, p in enumerate(true)]
        order = [int(t.candidate) for t in sequence(first, 0.9, 0.9)]
        verdicts = certify(order, lambda i: np.where(rng.random(40) < true[i], 1.0, 0.0), 0.9, 0.9, 0.9)
        wrong += any(v.holds for v in verdicts)
    assert wrong / runs <= 0.1 + 3.5 * np.sqrt(0.09 / runs)


def test_what_holds_is_mostly_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(100):
        verdicts = certify([0.999], lambda p: np.where(rng.random(40) < p, 1.0, 0.0), 0.9, 0.9, 0.9)
        found += verdicts[-1].holds
    assert found > 80


@pytest.mark.parametrize(("images", "needed"), [(43, 22), (44, 22), (2, 1), (101, 3)])
def test_the_halves_share_no_image(images: int, needed: int) -> None:
    first, second = split(images, needed, 0)
    assert sorted(first + second) == list(range(images))
    assert len(second) >= needed
    assert len(second) - len(first) in (0, 1)
    if images == 101:
        assert split(images, needed, 0) != split(images, needed, 1)
        assert {i % 2 for i in first} == {0, 1}  # no pattern: images may come class by class


@pytest.mark.parametrize(("images", "needed", "atleast"), [(42, 22, 43), (1, 1, 2), (0, 1, 2), (10, 22, 43)])
def test_too_few_images_are_told_how_many_it_takes(images: int, needed: int, atleast: int) -> None:
    with pytest.raises(kcompile.InputError, match=f"{images} images are too few .* at least {atleast}"):
        split(images, needed, 0)
    assert split(atleast, needed, 0)
