"""Batches of few kinds, and fronts that replay: on the CPU with a stand-in for CUDA graphs, and on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.core.region import evaluate
from kcompile.runtime import cuda_graphs, lowering_cuda, runners
from kcompile.runtime.buckets import buckets
from kcompile.runtime.choice import GPU
from kcompile.runtime.cuda_graphs import Graphed
from kcompile.runtime.scheduler import patch_regions
from tests.support.equivalence import assert_equivalent, full_inference, incremental, noise
from tests.support.networks import Residual, conv, conv_bn_relu, pooled_head, ready

SHAPE, PATCH = (3, 40, 44), (8, 7)


def network() -> nn.Module:
    return pooled_head(nn.Sequential(conv_bn_relu(3, 8), nn.MaxPool2d(3, 2, 1), Residual(8, 8), conv(8, 8)), 8)


def all_positions(stride: int) -> Any:
    axes = [np.arange(1 - patch, size, stride) for size, patch in zip(SHAPE[1:], PATCH, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


@pytest.mark.parametrize("most", [1, 3, 16])
@pytest.mark.parametrize("batch", [3, 16, 1000])
@pytest.mark.parametrize("overhead", [0.0, 1e6])
def test_buckets(batch: int, most: int, overhead: float, seed: int) -> None:
    plan = incremental(ready(network(), SHAPE), SHAPE, PATCH).plan
    positions = all_positions(3)
    regions = evaluate(plan.regions, patch_regions(positions, PATCH))
    rows = np.random.default_rng(seed).permutation(len(positions))[:150]
    found = buckets(plan, regions, rows, batch, overhead, most)
    assert sorted(np.concatenate([filled[:count] for filled, count in found])) == sorted(rows), "each exactly once"
    kinds = set()
    for filled, count in found:
        assert 1 <= count <= len(filled)
        extents = [tuple(int(axis.size[filled].max()) for axis in region.axes) for region in regions]
        kinds.add((len(filled), *extents))
        assert set(filled[count:]) <= set(rows)
    assert len(kinds) <= most, "extents and numbers of queries are the class's"
    assert max(len(filled) for filled, _ in found) <= max(batch, 2 * len(plan.regions) + 1)


def test_no_queries_are_no_buckets() -> None:
    plan = incremental(ready(network(), SHAPE), SHAPE, PATCH).plan
    regions = evaluate(plan.regions, patch_regions(all_positions(9), PATCH))
    assert buckets(plan, regions, np.zeros(0, dtype=np.int64), 8, 0.0) == []


class Recorder:
    """Stands in for CUDA graphs: replays by calling again; what is given must lie where it lay."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, call: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        self.captures += 1
        outputs = [output.clone() for output in call()]

        def replay() -> None:
            self.replays += 1
            for output, value in zip(outputs, call(), strict=True):
                output.copy_(value)

        return replay, outputs


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that kinds come again within a small map."""
    monkeypatch.setattr(runners, "GPU", replace(GPU, batch=32, per_op=1e7))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Modules run as on a GPU with graphs, in float64."""
    made = Recorder()
    monkeypatch.setattr(lowering_cuda, "available", lambda _: True)
    monkeypatch.setattr(cuda_graphs, "graphed", lambda front: Graphed(front, made, lambda: 0))
    return made


def check(inc: kcompile.IncrementalModule, images: int = 1, stride: int = 5) -> None:
    """Hold a map of noise patches against full inference."""
    image, positions = noise((images, *SHAPE), torch.float64), all_positions(stride)
    patches = noise((len(positions), 3, *PATCH), torch.float64, 3.0)
    index = np.arange(len(positions)) % images
    before = inc.materialize(image)
    got = inc.forward_patches(patches, positions, base_index=index)
    assert_equivalent(got, full_inference(inc.model, image[index], patches, positions), before[index])


def test_maps_of_several_images_replay(recorder: Recorder, seed: int) -> None:
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    check(inc)
    check(inc)
    captures, replays = recorder.captures, recorder.replays
    assert 0 < captures <= cuda_graphs.MOST
    assert replays >= captures
    check(inc)
    assert recorder.captures == captures, "every kind was captured"
    assert recorder.replays - replays >= captures, "every kind is replayed"


def test_another_number_of_base_images(recorder: Recorder, seed: int) -> None:
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    for images in (1, 2, 2, 1, 1):
        check(inc, images)
    assert recorder.replays


def test_inference_mode_now_and_not_then(recorder: Recorder, seed: int) -> None:
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    with torch.inference_mode():
        check(inc)
        check(inc)
    check(inc)


def test_what_cannot_be_captured_runs_without(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    def refuse(_: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(lowering_cuda, "available", lambda _: True)
    monkeypatch.setattr(cuda_graphs, "graphed", lambda front: Graphed(front, refuse, lambda: 0))
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    with pytest.warns(RuntimeWarning, match="can't run as CUDA graphs: operation not permitted"):
        check(inc)
    check(inc)


def test_results_are_not_overwritten_by_later_batches(seed: int) -> None:
    front = torch.fx.symbolic_trace(lambda patches, base_x: (patches + base_x,))
    run = Graphed(front, Recorder(), lambda: 0)
    base = torch.ones(3)
    results = [run(torch.full((3,), float(value)), base) for value in range(5)]
    assert [float(out[0][0]) for out in results] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert float(run(torch.zeros(3), torch.full((3,), 7.0))[0][0]) == 7.0, "another base"


def test_off_unless_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    front = torch.fx.symbolic_trace(lambda patches: (patches,))
    assert cuda_graphs.graphed(front) is None
    monkeypatch.setattr(cuda_graphs, "ENABLED", True)
    assert isinstance(cuda_graphs.graphed(front), Graphed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_gpu(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(cuda_graphs, "ENABLED", True)
    model = ready(network(), SHAPE)
    inc = incremental(copy.deepcopy(model), SHAPE, PATCH).to("cuda")
    positions = all_positions(5)
    patches = noise((len(positions), 3, *PATCH), torch.float64, 3.0)
    for _ in range(3):
        image = noise((1, *SHAPE), torch.float64)
        before = inc.materialize(image.cuda()).cpu()
        got = inc.forward_patches(patches.cuda(), positions).cpu()
        assert_equivalent(got, full_inference(model, image, patches, positions), before)
    run = inc.executor().graphed
    assert run is not None
    assert run.kept
