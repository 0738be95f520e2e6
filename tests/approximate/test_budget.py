"""Approximate maps under a memory budget: one module at a time holds its bases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kcompile
from kcompile import Approximation, MemoryBudgetError
from tests.support.equivalence import incremental, reacting
from tests.support.memory import peak_bytes
from tests.support.networks import vgg

SHAPE, PATCH = (3, 64, 61), (9, 8)
OPTIONS: dict[str, Any] = {"stride": 2, "score": "logit", "target": 0}


@pytest.mark.parametrize(
    "changes",
    [{"tau": 0.4}, {"tau": 0.4, "share": 0.2}, {"tau": 0.4, "correct": 36}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_the_same_map_within_the_budget(changes: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 no weights are packed: what is measured is what the budget bounds."""
    monkeypatch.setattr("kcompile.variants.has_arithmetic", lambda *_: True)
    dtype = torch.float32 if "dtype" in changes else torch.float64
    inc = incremental(reacting(vgg(3, SHAPE[1:]), torch.randn(8, *SHAPE)).to(dtype), SHAPE, PATCH)
    image, settings = torch.randn(*SHAPE, dtype=dtype), Approximation(**changes)
    want = kcompile.occlusion(inc, image, **OPTIONS, approximation=settings)
    with pytest.raises(MemoryBudgetError):
        inc.memory_budget = 1
    inc.memory_budget = 3 << 20
    found = kcompile.occlusion(inc, [image, image], **OPTIONS, approximation=settings)
    for heat in found:
        np.testing.assert_allclose(heat.scores, want.scores, rtol=0, atol=1e-2 * np.abs(want.scores).max())
        assert heat.error is not None
    if dtype is torch.float64:
        took = peak_bytes(lambda: kcompile.occlusion(inc, [image, image], **OPTIONS, approximation=settings))
        inc.memory_budget = None
        free = peak_bytes(lambda: kcompile.occlusion(inc, [image, image], **OPTIONS, approximation=settings))
        print(f"{took:,} of {3 << 20:,} bytes, {free:,} without a budget")
        assert took <= 3 << 20 < free
    else:
        assert inc._store is not None  # the exact module was the last to make a base


def test_a_variant_that_does_not_fit_is_told(seed: int) -> None:
    inc = incremental(vgg(3, SHAPE[1:]).double().eval(), SHAPE, PATCH)
    inc.memory_budget = 3 << 20
    settings = Approximation(tau=0.9, samples=0)
    kcompile.occlusion(inc, torch.randn(*SHAPE).double(), **OPTIONS, approximation=settings)
    inc._memory_budget = 1  # as if variants took more than the module itself
    with pytest.raises(MemoryBudgetError, match="memory_budget is 1 bytes; one base image and a query of it takes"):
        kcompile.occlusion(inc, torch.randn(*SHAPE).double(), **OPTIONS, approximation=settings)


def test_a_lattice_of_many_classes_has_its_share_of_the_budget(seed: int) -> None:
    model = reacting(vgg(3, SHAPE[1:]), torch.randn(8, *SHAPE))
    inc = incremental(torch.nn.Sequential(model, torch.nn.Linear(5, 1000)).double().eval(), SHAPE, PATCH)
    image = torch.randn(*SHAPE, dtype=torch.float64)
    inc.memory_budget = budget = 6 << 20
    options: Any = {**OPTIONS, "approximation": Approximation(tau=0.4, correct=9)}
    kcompile.occlusion(inc, image, **options)
    assert peak_bytes(lambda: kcompile.occlusion(inc, image, **options)) <= budget
    with pytest.raises(MemoryBudgetError, match=r"correct is 100: the scores of so many positions, with 1000 classes"):
        kcompile.occlusion(inc, image, **{**options, "approximation": Approximation(tau=0.4, correct=100)})
