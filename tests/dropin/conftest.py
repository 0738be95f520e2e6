"""Networks and images for the explainers' tests."""

from __future__ import annotations

import pytest
import torch

import kcompile
from tests.support.equivalence import compiled


@pytest.fixture(scope="module")
def small() -> kcompile.IncrementalModule:
    """A reacting network for images (3, 30, 37), compiled for patches of (6, 5)."""
    torch.manual_seed(11)
    return compiled()


@pytest.fixture
def inc(small: kcompile.IncrementalModule) -> kcompile.IncrementalModule:
    """The same, without a base and not tracking."""
    small.drop_base()
    return small.track_base(False)
