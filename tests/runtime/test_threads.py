"""Threads: each its own module, or queries of several against one base."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.equivalence import PATCH, SHAPE, compiled, incremental, network, noise
from tests.support.networks import conv, inception, pooled_head, ready


def at_once(*tasks: Callable[[], Any]) -> list[Any]:
    """Run each task in a thread of its own; they begin together."""
    barrier = Barrier(len(tasks))

    def begin(task: Callable[[], Any]) -> Any:
        barrier.wait(timeout=60)
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result(timeout=300) for future in [pool.submit(begin, task) for task in tasks]]


@pytest.mark.parametrize("policy", ["incremental", "full", "auto"])
def test_two_modules(policy: Any, seed: int) -> None:
    other = ready(pooled_head(nn.Sequential(inception(3), conv(9, 8)), 8), SHAPE, torch.float32)
    incs = [incremental(ready(network(), SHAPE, torch.float32), SHAPE, PATCH), incremental(other, SHAPE, PATCH)]
    images = noise((6, *SHAPE))
    positions = np.random.default_rng(seed).integers(-3, 30, (150, 2))

    def run(number: int) -> list[Tensor]:
        inc, found = incs[number], []
        inc.policy = policy
        for image in images:
            found += [inc.materialize(image), inc.forward_patches(2.0, positions)]
        return found

    alone = [run(0), run(1)]
    for inc in incs:
        inc.to("cpu")  # drops what was made at first use
    for mine, want in zip(at_once(lambda: run(0), lambda: run(1)), alone, strict=True):
        for one, other_one in zip(mine, want, strict=True):
            torch.testing.assert_close(one, other_one, rtol=1e-4, atol=1e-5)


def test_one_base_for_several_threads(seed: int) -> None:
    """The first queries come at once, so that what is made at first use is made by several."""
    inc = compiled()
    image = noise(SHAPE)
    rng = np.random.default_rng(seed)
    places = [rng.integers(-3, 30, (25, 2)) for _ in range(4)]
    inc.materialize(image)
    want = [inc.forward_patches(float(k), where) for k, where in enumerate(places)]
    assert not torch.allclose(want[1], want[2])
    for _ in range(5):
        inc.to("cpu")
        inc.materialize(image)
        got = at_once(
            *(lambda k=k, where=where: inc.forward_patches(float(k), where) for k, where in enumerate(places))
        )  # type: ignore[misc]
        for mine, wanted in zip(got, want, strict=True):
            assert torch.equal(mine, wanted)
