"""Returning: free memory goes back to the system under a memory budget, and only then."""

from __future__ import annotations

import pytest

from kcompile.runtime import returning
from kcompile.runtime.returning import LEAST, Returning, resident
from tests.support.equivalence import SHAPE, check, compiled, noise


class Process:
    """A process of some size, of which some bytes are in use."""

    def __init__(self, size: int, used: int) -> None:
        self.size, self.used, self.trims = size, used, 0

    def trim(self, pad: int) -> None:
        self.trims += 1
        self.size = self.used


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    made = Process(10 * LEAST, 10 * LEAST)
    monkeypatch.setattr(returning, "resident", lambda: made.size)
    monkeypatch.setattr(returning, "_trim", lambda: made.trim)
    return made


def test_returns_what_the_process_grew_by(process: Process) -> None:
    watch = Returning(LEAST)
    process.size += LEAST
    watch.check()
    assert process.trims == 0
    process.size += 1
    watch.check()
    assert (process.trims, process.size) == (1, process.used)


def test_what_is_needed_is_not_returned_again(process: Process) -> None:
    watch = Returning(LEAST)
    process.size = process.used = 20 * LEAST
    for _ in range(3):
        watch.check()
    assert process.trims == 1
    process.size += 2 * LEAST
    watch.check()
    assert process.trims == 2


def test_a_large_budget_lets_it_grow_more(process: Process) -> None:
    watch = Returning(80 * LEAST)
    process.size += 10 * LEAST
    watch.check()
    assert process.trims == 0


def test_nothing_is_watched_without_a_budget(process: Process) -> None:
    watch = Returning(None)
    process.size *= 100
    watch.check()
    assert process.trims == 0


@pytest.mark.parametrize("missing", ["resident", "_trim"])
def test_elsewhere_than_on_linux(process: Process, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returning, missing, lambda: None)
    Returning(LEAST).check()
    assert process.trims == 0


def test_calls_under_a_budget_return_it(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    trims = []
    monkeypatch.setattr(returning, "_trim", lambda: trims.append)
    sizes = iter(range(10**9, 10**12, 10**9))
    monkeypatch.setattr(returning, "resident", lambda: next(sizes))
    inc = compiled()
    inc.materialize(noise(SHAPE))
    inc.forward_patches(0.0, [[0, 0]])
    assert not trims
    inc.memory_budget = 1 << 24
    inc.materialize(noise(SHAPE))
    made = len(trims)
    inc.forward_patches(0.0, [[0, 0]])
    assert 0 < made < len(trims)
    check(inc)


def test_this_process_has_a_size() -> None:
    size = resident()
    assert size is None or 1 << 24 < size < 1 << 44
