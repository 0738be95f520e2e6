"""Random networks are inferred as full inference does, and nothing changes outside of the predicted regions."""

from __future__ import annotations

import logging
import random
from unittest import mock

import pytest

from kcompile.core.axis_map import Blocks, Sliding, Table, Transposed
from kcompile.core.interval import Interval
from tests.fuzz.campaign import WrongGraphError, search


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # a line per fake tensor


@pytest.mark.parametrize("part", range(10))
def test_random_graphs(part: int, seed: int) -> None:
    tally = search(random.randrange(2**32), 50)
    print(tally)
    assert tally.graphs >= 45  # hypothesis may stop at graphs that it has seen
    assert tally.reacting >= 0.6 * tally.graphs, "most graphs must react, else the comparison is void"
    assert tally.incremental >= tally.graphs, "most graphs must have incremental layers"


@pytest.mark.parametrize("kind", [Sliding, Table, Blocks, Transposed])
def test_a_wrong_rule_is_found(kind: type, seed: int) -> None:
    """Regions without their last cell: the search fails, with a program that fails too (and passes when mended)."""
    right = kind.region

    def short(self: object, changed: Interval) -> Interval:
        interval = right(self, changed)
        return Interval.of(interval.lo, interval.hi - 1).where(interval.hi > interval.lo + 1)

    with mock.patch.object(kind, "region", short):
        with pytest.raises(WrongGraphError) as found:
            search(random.randrange(2**32), 1500, shrink=False)  # ends at the first; 300 were too few for one seed
        printed = str(found.value).split("run this:\n\n")[1]
        with pytest.raises(AssertionError):
            exec(printed, {})
    exec(printed, {})
