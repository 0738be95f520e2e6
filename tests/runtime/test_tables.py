"""The geometry of all batches at once: as that of each batch, in one copy; transfers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kcompile.core.region import evaluate
from kcompile.runtime.scheduler import Geometry, geometry, patch_regions, schedule
from kcompile.runtime.tables import geometries, index_arrays, uploaded
from kcompile.runtime.transfers import Arriving, upload
from tests.support.networks import Residual, conv
from tests.support.running import compile_incremental, positions_touching


def same(mine: Geometry, want: Geometry) -> bool:
    pairs = zip(vars(mine).items(), vars(want).values(), strict=True)
    for (name, a), b in pairs:
        if isinstance(b, np.ndarray):
            assert np.array_equal(a, b), name
            assert a.dtype == b.dtype, name
        else:
            assert a == b, name
    return True


def resized() -> nn.Module:
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(
        conv(3, 4, stride=2), nn.MaxPool2d(3, 2, 1), Residual(4, 4), up, nn.ConvTranspose2d(4, 4, 3, 2), conv(4, 2, 5),
        nn.AdaptiveAvgPool2d((7, 5)), conv(2, 2),
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 5, 40, 1000])
def test_geometries_are_those_of_each_batch(batch: int, seed: int) -> None:
    shape, patch = (3, 41, 30), (7, 4)
    plan = compile_incremental(resized().double().eval(), shape, patch).plan
    assert any(read.placed for read in plan.reads)
    rng = np.random.default_rng(seed)
    positions = rng.permutation(positions_touching(shape[1:], patch))[:200]
    regions = evaluate(plan.regions, patch_regions(positions, patch))
    batches = schedule(plan, positions, patch, batch, 1e5)
    found = geometries(plan, positions, patch, regions, batches)
    assert len(found) == len(batches)
    for rows, mine in zip(batches, found, strict=True):
        want = geometry(plan, positions[rows], patch, [region.take(rows) for region in regions])
        assert mine.keys() == want.keys()
        assert all(same(mine[name], want[name]) for name in want)


def test_batches_on_a_device(seed: int) -> None:
    places = np.random.default_rng(seed).integers(0, 9, (5, 2))
    few, more = places[:2], places[2:]
    found = [{"a": Geometry(few, (1, 1), few, few, few), "b": Geometry(few, (1,), None)}]
    found += [{"a": Geometry(more, (1, 1), more), "b": Geometry(more, (1,), None)}]
    bases = [dict.fromkeys("ab", np.arange(2)), dict.fromkeys("ab", np.arange(3))]
    arrays = [index_arrays(*each) for each in zip(found, bases, strict=True)]
    assert list(arrays[0]) == ["a_origins", "a_offsets", "a_start", "a_at", "b_origins"]
    for device in ("cpu", "meta"):
        for want, mine in zip(arrays, uploaded(arrays, torch.device(device)), strict=True):
            assert {name: tuple(value.shape) for name, value in mine.items()} == {
                name: array.shape for name, array in want.items()
            }
            assert device == "meta" or all(np.array_equal(mine[name].numpy(), want[name]) for name in want)


def test_transfers(seed: int) -> None:
    array = np.arange(6).reshape(2, 3)
    assert torch.equal(upload(array, torch.device("cpu")), torch.arange(6).view(2, 3))
    values = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert np.array_equal(Arriving(values).numpy(), values.detach().float().numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_transfers_on_a_gpu() -> None:
    device, array = torch.device("cuda"), np.arange(6).reshape(2, 3)
    assert torch.equal(upload(array, device).cpu(), torch.arange(6).view(2, 3))
    assert np.array_equal(Arriving(torch.arange(3.0, device=device)).numpy(), np.arange(3.0))
