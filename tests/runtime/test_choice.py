"""Which way a call runs, and that every way gives the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import kcompile
from kcompile.core.errors import InputError
from kcompile.core.region import evaluate
from kcompile.runtime import choice
from kcompile.runtime.choice import Way
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.scheduler import patch_regions
from tests.support.equivalence import reacting

WIDE = (3, 96, 96)


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


@pytest.fixture
def inc(seed: int) -> IncrementalModule:
    return kcompile.incrementalize(reacting(_network(), torch.randn(4, *WIDE)), WIDE, 8)


def _positions(count: int) -> np.ndarray:
    return np.random.default_rng(torch.initial_seed() % 2**32).integers(-4, 92, (count, 2))


def _ways(inc: IncrementalModule, monkeypatch: pytest.MonkeyPatch, count: int) -> list[Way]:
    """The decisions of one call."""
    made: list[Way] = []
    decide = choice.Choice.way

    def noted(self: choice.Choice, *args: object, **options: object) -> Way:
        made.append(decide(self, *args, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(choice.Choice, "way", noted)
    inc.policy = "auto"
    inc.forward_patches(0.5, _positions(count))
    return made


@pytest.mark.parametrize("count", [1, 15, 16, 33, 300])
@pytest.mark.parametrize("bases", [1, 3])
def test_every_way_gives_the_same(inc: IncrementalModule, count: int, bases: int) -> None:
    base = inc.materialize(torch.randn(bases, *WIDE))
    positions, index = _positions(count), np.arange(count) % bases
    patches = torch.randn(count, 3, 8, 5) * 3
    results = {}
    for policy in ("incremental", "full", "auto"):
        inc.policy = policy  # type: ignore[assignment]
        results[policy] = inc.forward_patches(patches, positions, base_index=index)
    scale = float(results["full"].abs().max())
    if count > 1:
        assert float((results["full"] - base[torch.from_numpy(index)]).abs().max()) > 1e-3 * scale
    for result in results.values():
        torch.testing.assert_close(result, results["full"], rtol=0, atol=1e-4 * scale)


def test_timing_loses_and_repeats_no_query(inc: IncrementalModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inc.executor().choice, "costs", replace(choice.CPU, clear=1e-9))  # nothing is clear
    for faster in (Way.INCREMENTAL, Way.FULL):
        inc.materialize(torch.randn(WIDE))
        inc.executor().choice.rates.clear()
        seen: list[int] = []
        inc.policy = "auto"
        for rows, _, _ in inc.stream_patches(1.0, _positions(400)):
            seen += rows.tolist()
            if inc.executor().choice.rates:
                inc.executor().choice.rates.update({way: float(way is not faster) for way in choice.Way})
        assert sorted(seen) == list(range(400))


def test_clear_estimates_are_not_timed(inc: IncrementalModule, monkeypatch: pytest.MonkeyPatch) -> None:
    inc.materialize(torch.randn(WIDE))
    monkeypatch.setattr(inc.executor().choice, "costs", replace(choice.CPU, clear=1.0))
    ways = _ways(inc, monkeypatch, 300)
    assert ways in ([Way.INCREMENTAL], [Way.FULL])


def test_close_estimates_are_timed_once(inc: IncrementalModule, monkeypatch: pytest.MonkeyPatch) -> None:
    inc.materialize(torch.randn(WIDE))
    monkeypatch.setattr(inc.executor().choice, "costs", replace(choice.CPU, clear=1e-9))
    first, second = _ways(inc, monkeypatch, 300)
    assert first is Way.TIMED
    assert second is not Way.TIMED
    assert set(inc.executor().choice.rates) == {Way.INCREMENTAL, Way.FULL}
    assert Way.TIMED not in _ways(inc, monkeypatch, 300)


def test_small_gains_are_taken_only_if_measured(inc: IncrementalModule) -> None:
    made = inc.executor().choice
    half = np.full(2, made.full(2) * 0.9 / 2)  # 10 % less, by estimate
    assert made.way(half, 0) is Way.FULL
    made.rates.update({Way.INCREMENTAL: 1.0, Way.FULL: 1.0})
    assert made.way(half, 0) is Way.INCREMENTAL


def test_few_queries_of_a_small_map_run_in_full(inc: IncrementalModule, monkeypatch: pytest.MonkeyPatch) -> None:
    inc.materialize(torch.randn(WIDE))
    assert _ways(inc, monkeypatch, 1) == [Way.FULL]


def test_estimates_grow_with_the_boxes(inc: IncrementalModule) -> None:
    made = inc.executor().choice
    corner, centre = made.queries(evaluate(inc.plan.regions, patch_regions(np.array([[-6, -6], [44, 44]]), (8, 8))))
    assert corner < centre < made.full(1)


def test_another_policy_is_refused(inc: IncrementalModule) -> None:
    inc.materialize(torch.randn(WIDE))
    inc.policy = "fast"  # type: ignore[assignment]
    with pytest.raises(InputError, match="'fast'; allowed are auto, incremental, full"):
        inc.forward_patches(0.0, [[0, 0]])
