"""IncrementalModule: drop-in calls, bases, forms of patches and positions, order of results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kcompile.runtime import executor
from tests.support.equivalence import PATCH, SHAPE, assert_equivalent, check, compiled, full_inference, noise

# ------------------------------------------------------------------ the plain call


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_is_the_model(batch: int, seed: int) -> None:
    inc, images = compiled(), noise((batch, *SHAPE))
    assert torch.equal(inc(images), inc.model(images))


def test_gradients_flow_through_the_call(seed: int) -> None:
    inc, images = compiled(), noise((2, *SHAPE)).requires_grad_()
    inc.materialize(images[0].detach())
    (mine,) = torch.autograd.grad(inc(images).square().sum(), images)
    (want,) = torch.autograd.grad(inc.model(images).square().sum(), images)
    assert mine.abs().max() > 0
    assert torch.equal(mine, want)


def test_results_need_no_gradient_and_leave_the_mode_alone(seed: int) -> None:
    inc = compiled()
    for result in (inc.materialize(noise(SHAPE)), inc.forward_patches(0.0, [[1, 2]])):
        assert not result.requires_grad
    assert torch.is_grad_enabled()
    for _ in inc.stream_patches(0.0, [[1, 2], [3, 4]]):
        assert torch.is_grad_enabled()


# ------------------------------------------------------------------ bases


def test_an_image_with_and_without_batch(seed: int) -> None:
    inc, image = compiled(), noise(SHAPE)
    with torch.no_grad():
        want = inc.model(image[None])
    for given in (image, image[None], image[None].to(memory_format=torch.channels_last)):
        torch.testing.assert_close(inc.materialize(given), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inc.base_output, want, rtol=1e-4, atol=1e-5)
    assert inc.materialize(image).shape == want.shape


def test_several_bases(seed: int) -> None:
    inc, images = compiled(), noise((4, *SHAPE))
    before = inc.materialize(images)
    index = np.array([3, 0, 0, 2, 1, 3, 2])
    positions = np.random.default_rng(seed).integers(-3, 30, (len(index), 2))
    patches = noise((len(index), 3, *PATCH), size=3.0)
    full = full_inference(inc.model, images[index], patches, positions)
    for given in (index, torch.from_numpy(index), index.tolist(), index.astype(np.uint8)):
        got = inc.forward_patches(patches, positions, base_index=given)
        assert_equivalent(got, full, before[index])
    first = full_inference(inc.model, images[:1], patches, positions)
    assert_equivalent(inc.forward_patches(patches, positions), first, before[:1])


def test_a_new_image_replaces_the_base(seed: int) -> None:
    inc = compiled()
    for _ in range(3):
        check(inc)


# ------------------------------------------------------------------ queries


@pytest.mark.parametrize("tail_bytes", [1, 5000, 64 << 20])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_results_come_in_the_order_of_the_positions(
    batch: int, tail_bytes: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However queries are grouped for front and tail; the last groups are smaller."""
    monkeypatch.setattr(executor, "TAIL_BYTES", (tail_bytes, tail_bytes))
    inc, image = compiled(), noise(SHAPE)
    before = inc.materialize(image)
    inc.executor().batch = batch
    grid = np.stack(np.meshgrid(np.arange(-4, 30, 5), np.arange(-4, 37, 7), indexing="ij"), -1).reshape(-1, 2)
    positions = np.random.default_rng(seed).permutation(np.concatenate([grid, grid[:4]]))
    patches = noise((len(positions), 3, *PATCH), size=3.0)
    full = full_inference(inc.model, image[None], patches, positions)
    assert_equivalent(inc.forward_patches(patches, positions), full, before)
    seen = np.concatenate([rows for rows, _, _ in inc.stream_patches(patches, positions)])
    assert sorted(seen.tolist()) == list(range(len(positions)))


def test_every_form_of_patches(seed: int) -> None:
    inc, image = compiled(), noise(SHAPE)
    before = inc.materialize(image)
    positions = np.array([[0, 0], [28, 35], [9, -2], [12, 20]])
    colour, small = torch.tensor([3.0, -2.0, 5.0]), noise((3, 2, 4), size=5.0)
    forms: list[tuple[Any, Tensor]] = [
        (4.0, torch.full((1, 3, *PATCH), 4.0)),
        (torch.tensor(4.0), torch.full((1, 3, *PATCH), 4.0)),
        (4, torch.full((1, 3, *PATCH), 4.0)),
        (colour, colour.view(1, 3, 1, 1).expand(1, 3, *PATCH)),
        (colour.tolist(), colour.view(1, 3, 1, 1).expand(1, 3, *PATCH)),
        (small, small[None]),
        (small.expand(4, 3, 2, 4), small[None]),
        (many := noise((4, 3, *PATCH), size=3.0), many),
        (many.to(memory_format=torch.channels_last), many),
        (many[..., :1, :], many[..., :1, :]),
    ]
    for given, patches in forms:
        assert_equivalent(
            inc.forward_patches(given, positions), full_inference(inc.model, image[None], patches, positions), before
        )


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.int16, np.int8])
def test_positions_of_any_integer_type(kind: Any, seed: int) -> None:
    inc = compiled()
    inc.materialize(noise(SHAPE))
    positions = np.array([[0, 0], [-3, 30], [7, 8]])
    want = inc.forward_patches(2.0, positions)
    for given in (positions.astype(kind), torch.from_numpy(positions.astype(kind)), positions.tolist(), positions[::1]):
        assert torch.equal(inc.forward_patches(2.0, given), want)
    flipped = inc.forward_patches(2.0, np.ascontiguousarray(positions[::-1])[::-1])
    assert torch.equal(flipped, want)


def test_the_base_s_own_pixels_change_nothing(seed: int) -> None:
    inc, image = compiled(), noise(SHAPE)
    before = inc.materialize(image)
    positions = np.array([[0, 0], [10, 11], [24, 32]])
    own = torch.stack([image[:, r : r + 6, c : c + 5] for r, c in positions.tolist()])
    torch.testing.assert_close(inc.forward_patches(own, positions), before.expand(3, -1), rtol=1e-4, atol=1e-5)
