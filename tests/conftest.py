"""Options and fixtures for all tests."""

import os
import random

import numpy as np
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --update-golden."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files instead of comparing")


def pytest_configure() -> None:
    """Limit torch to KCOMPILE_THREADS threads, if set."""
    if threads := os.environ.get("KCOMPILE_THREADS"):
        torch.set_num_threads(int(threads))


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def seed() -> int:
    """A fresh seed, set for torch, numpy and random; pytest shows it where the test fails.

    KCOMPILE_SEED=<number> repeats a failure.
    """
    value = int(os.environ.get("KCOMPILE_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed: {value} (repeat with KCOMPILE_SEED={value})")
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
    return value


@pytest.fixture(autouse=True)
def _incremental_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps would be run in full, and tests of incremental inference test nothing; those of "auto" say so."""
    monkeypatch.setattr("kcompile.runtime.module.IncrementalModule.policy", "incremental")
