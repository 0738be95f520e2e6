"""What the benchmarks share: samples of whole batches, patched images, positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kcompile
from benchmarks import maps
from kcompile.runtime import executor


@pytest.fixture(scope="module")
def inc() -> kcompile.IncrementalModule:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8 * 64, 5)).eval()
    return kcompile.incrementalize(model, (1, 3, 32, 32), 6)


@pytest.mark.parametrize("count", [0, 1, 40, 300, 10_000])
def test_a_sample_is_whole_batches_of_the_maps_schedule(inc: kcompile.IncrementalModule, count: int) -> None:
    everything = maps.positions_of(32, 6, 1)
    whole = {tuple(rows) for rows in maps._batches(inc, everything)}
    sample = maps.sample_of(inc, everything, count)
    assert {tuple(sample.rows[batch]) for batch in sample.batches} <= whole
    assert len(set(sample.rows)) == len(sample.rows) == sum(map(len, sample.batches))
    if count in (0, 10_000):
        assert len(sample.rows) == len(everything)
    else:
        assert abs(len(sample.rows) - count) <= 2 * max(map(len, whole))


def test_a_sample_costs_per_position_what_the_map_does(inc: kcompile.IncrementalModule) -> None:
    everything = maps.positions_of(32, 6, 1)
    macs = maps.own_box_macs(inc, everything)
    sample = maps.sample_of(inc, everything, 200)
    assert macs[sample.rows].mean() == pytest.approx(macs.mean(), rel=0.05)


def test_a_sample_runs_as_scheduled(inc: kcompile.IncrementalModule, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = maps.positions_of(32, 6, 2)
    sample = maps.sample_of(inc, everything, 60)
    seen: list[int] = []
    arguments = executor.Executor.arguments

    def spy(self: Any, store: Any, patches: Any, positions: Any, *rest: Any) -> Any:
        seen.append(len(positions))
        return arguments(self, store, patches, positions, *rest)

    monkeypatch.setattr(executor.Executor, "arguments", spy)
    inc.materialize(torch.rand(3, 32, 32))
    with sample.scheduled():
        mine = inc.forward_patches(0.0, sample.positions)
    assert seen == [len(batch) for batch in sample.batches]
    assert sample.scheduling > 0
    torch.testing.assert_close(mine, inc.forward_patches(0.0, everything)[torch.from_numpy(sample.rows)])


def test_occluded_images(seed: int) -> None:
    image, positions = torch.randn(3, 7, 9), np.array([[0, 0], [4, 6], [-2, 3], [5, 8]])
    images = maps.occluded(image, positions, 3)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for row, (top, left) in enumerate(positions.tolist()):
        want = image.clone()
        want[:, max(top, 0) : top + 3, max(left, 0) : left + 3] = 0
        assert torch.equal(images[row], want)
    same = maps.occluded(image, positions, 3, layout=torch.contiguous_format)
    assert same.is_contiguous()
    assert torch.equal(same, images)


def test_positions() -> None:
    assert maps.positions_of(8, 4, 3).tolist() == [[0, 0], [0, 3], [3, 0], [3, 3]]
