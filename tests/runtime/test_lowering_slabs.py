"""PyTorch's ops that write into slabs: the same values in the same layout, and a module's tensors do lie there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kcompile.cuda_ops import slab
from kcompile.cuda_ops.slab import LEAST, in_slabs
from kcompile.runtime import lowering_slabs
from tests.support.equivalence import SHAPE, compiled, noise

aten = torch.ops.aten
CALLS: list[tuple[Any, Any, tuple[Any, ...]]] = [
    (lowering_slabs.avg_pool2d, aten.avg_pool2d.default, ([3, 3], [1, 1], [1, 1])),
    (lowering_slabs.avg_pool2d, aten.avg_pool2d.default, ([3, 2],)),
    (lowering_slabs.avg_pool2d, aten.avg_pool2d.default, ([3], [2], [1], True, False)),
    (lowering_slabs.avg_pool2d, aten.avg_pool2d.default, ([2, 2], [3, 2], [1, 0], True, True, 3)),
    (lowering_slabs.max_pool2d, aten.max_pool2d.default, ([3, 3], [2, 2])),
    (lowering_slabs.max_pool2d, aten.max_pool2d.default, ([2],)),
    (lowering_slabs.max_pool2d, aten.max_pool2d.default, ([3, 2], [2, 3], [1, 1], [1, 2], True)),
    (lowering_slabs.max_pool2d, aten.max_pool2d.default, ([2, 2], [3, 3], [0, 0], [2, 1], True)),
]


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Slabs of this test's own."""
    made = slab._Thread()
    monkeypatch.setattr(slab, "_thread", made)
    return made


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("size", [(31, 34), (30, 33), (29, 35)])
@pytest.mark.parametrize(("ours", "theirs", "rest"), CALLS, ids=[f"{theirs} {rest}" for _, theirs, rest in CALLS])
def test_pools(ours: Any, theirs: Any, rest: tuple[Any, ...], size: tuple[int, int], inside: bool, own: Any) -> None:
    image = noise((4, 40, *size)).to(memory_format=torch.channels_last)
    want = theirs(image, *rest)
    with in_slabs(inside):
        got = ours(image, *rest)
    assert torch.equal(got, want)
    assert got.stride() == want.stride()
    assert bool(own.slabs) is inside


@pytest.mark.parametrize("inside", [True, False])
def test_concatenation(inside: bool, own: Any) -> None:
    parts = [noise((3, channels, 21, 20)).to(memory_format=torch.channels_last) for channels in (8, 3, 40)]
    with in_slabs(inside):
        got = lowering_slabs.cat(parts, 1)
    want = torch.cat(parts, 1)
    assert torch.equal(got, want)
    assert got.stride() == want.stride()
    assert bool(own.slabs) is inside


@pytest.mark.parametrize(("dim", "sizes"), [(0, (5, 40, 21, 20)), (-1, (5, 40, 21, 20)), (1, (5, 40000))])
def test_other_concatenations_are_pytorch_s(dim: int, sizes: tuple[int, ...], own: Any) -> None:
    parts = [noise(sizes), noise(sizes)]
    with in_slabs():
        assert torch.equal(lowering_slabs.cat(parts, dim), torch.cat(parts, dim))
        mixed = lowering_slabs.cat([noise((5, 40, 21, 20)), torch.ones(5, 40, 21, 20, dtype=torch.int64)], 1)
    assert mixed.dtype is torch.float32
    assert own.slabs == []


def test_a_module_uses_them(own: Any) -> None:
    """Its calls leave nothing live, and the results are their own."""
    inc = compiled()
    inc.materialize(noise(SHAPE))
    where = torch.arange(60).repeat(2, 1).T.numpy() // 2
    first = inc.forward_patches(0.5, where)
    kept = first.clone()
    (made,) = own.slabs
    assert made.top >= LEAST
    inc.forward_patches(-0.5, where)
    assert torch.equal(first, kept)
    assert made.live == 0


@pytest.mark.parametrize("stop", [False, True])
def test_a_budget_gives_them_back(stop: bool, own: Any) -> None:
    """After a call, and after one that was broken off."""
    inc = compiled()
    inc.memory_budget = 1 << 24
    inc.materialize(noise(SHAPE))
    where = torch.arange(60).repeat(2, 1).T.numpy() // 2
    if stop:
        calls = inc.stream_patches(0.5, where)
        next(calls)
        assert own.slabs
        calls.close()
    else:
        inc.forward_patches(0.5, where)
    assert own.slabs == []
