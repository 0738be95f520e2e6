"""Queries beyond a square of one colour: masks, channels, two boxes, outputs as regions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.runtime import two_boxes
from kcompile.runtime.outputs import MapRegion
from tests.support.equivalence import PATCH, SHAPE, assert_equivalent, compiled, incremental, noise, refused
from tests.support.networks import Call, conv_bn_relu, ready
from tests.support.running import paste

COUNT = 7


@pytest.fixture(scope="module")
def inc() -> kcompile.IncrementalModule:
    """The small network."""
    return compiled()


def positions(seed: int, *lead: int) -> Any:
    """Places [*lead, 2] that may stick out of the image."""
    return np.random.default_rng(seed).integers((-2, -1), (29, 36), (*lead, 2))


def mixed(images: Tensor, patches: Tensor, where: Any, alpha: Tensor) -> Tensor:
    """Patched copies by the definition: the whole image mixed with the patch through the mask, pixel by pixel."""
    shown = paste(images, patches.expand(len(images), *patches.shape[-3:]), where)
    weight = paste(torch.zeros_like(images), alpha.expand(len(images), *patches.shape[-3:]), where)
    return images * (1 - weight) + shown * weight


def check(inc: kcompile.IncrementalModule, got: Any, images: Tensor, before: Tensor, seed: int) -> None:
    """Hold a result against the model on really patched images."""
    with torch.no_grad():
        assert_equivalent(got, inc.model(images), before, f"seed {seed}")


MASKS = {
    "disc": lambda: torch.linspace(-1, 1, 6)[:, None] ** 2 + torch.linspace(-1, 1, 5) ** 2 <= 1,
    "gaussian": lambda: torch.exp(-(torch.linspace(-2, 2, 6)[:, None] ** 2 + torch.linspace(-2, 2, 5) ** 2)),
    "one per query": lambda: torch.rand(COUNT, 6, 5),
    "one per channel": lambda: torch.rand(COUNT, 3, 6, 5),
    "small": lambda: torch.rand(3, 2),
}


@pytest.mark.parametrize("patch", ["scalar", "colour", "one", "each"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(inc: kcompile.IncrementalModule, mask: str, patch: str, seed: int) -> None:
    """Soft and non-rectangular patches, over several bases."""
    alpha = MASKS[mask]()
    size = alpha.shape[-2:]
    patches: Any = {
        "scalar": 2.5,
        "colour": [1.0, -2.0, 3.0],
        "one": noise((3, *size), size=3.0),
        "each": noise((COUNT, 3, *size), size=3.0),
    }[patch]
    images, where, index = noise((2, *SHAPE)), positions(seed, COUNT), np.arange(COUNT) % 2
    before = inc.materialize(images)[index]
    got = inc.forward_patches(patches, where, base_index=index, mask=alpha)
    shown = torch.as_tensor(patches)
    shown = shown.reshape(-1, 1, 1).expand(3, *size) if shown.dim() < 2 else shown
    weight = alpha.float() if alpha.dim() == 4 else alpha.float().unsqueeze(-3)
    check(inc, got, mixed(images[index], shown, where, weight.expand(*weight.shape[:-3], 3, *size)), before, seed)


@pytest.mark.parametrize("mask", [None, "gaussian"])
@pytest.mark.parametrize("channels", [1, [0, 2], [-1], torch.tensor([1, 1])])
def test_channels(inc: kcompile.IncrementalModule, channels: Any, mask: str | None, seed: int) -> None:
    """The other channels keep the base's pixels."""
    image, where, patches = noise(SHAPE), positions(seed, COUNT), noise((COUNT, 3, *PATCH), size=3.0)
    alpha = torch.zeros(3, *PATCH)
    alpha[channels] = 1 if mask is None else MASKS[mask]()
    before = inc.materialize(image)
    got = inc.forward_patches(patches, where, channels=channels, mask=None if mask is None else MASKS[mask]())
    check(inc, got, mixed(image.expand(COUNT, -1, -1, -1), patches, where, alpha), before, seed)


def test_what_is_masked_out_may_be_infinite(inc: kcompile.IncrementalModule) -> None:
    """0 * inf is NaN; a mask of 0 keeps the base's pixel all the same."""
    before = inc.materialize(noise(SHAPE))
    got = inc.forward_patches(torch.full((3, *PATCH), torch.inf), [[3, 4]], mask=torch.zeros(PATCH))
    torch.testing.assert_close(got, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["apart", "shared first", "overlapping", "any"])
@pytest.mark.parametrize("given", ["scalar", "one", "each", "masked"])
@pytest.mark.parametrize("policy", ["incremental", "auto", "full"])
def test_two_boxes(
    inc: kcompile.IncrementalModule, kind: str, given: str, policy: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later box lies over the earlier; both strategies are right."""
    monkeypatch.setattr(inc, "policy", policy)
    where = positions(seed, COUNT, 2)
    if kind == "shared first":
        where[:, 0] = where[0, 0]
    if kind == "overlapping":
        where[:, 1] = np.clip(where[:, 0] + np.random.default_rng(seed).integers(-3, 4, (COUNT, 2)), -4, (29, 36))
    if kind == "apart":
        where[:, 0], where[:, 1] = (-2, 1), (20, 30)
        where[::2] = where[::2, ::-1]
    images, index = noise((2, *SHAPE)), np.arange(COUNT) % 2
    if given == "scalar":
        patches, mask = -2.0, None
        shown = torch.full((COUNT, 2, 3, *PATCH), -2.0)
    elif given == "one":
        patches, mask = noise((3, *PATCH), size=3.0), None
        shown = patches.expand(COUNT, 2, -1, -1, -1)
    else:
        shown = patches = noise((COUNT, 2, 3, *PATCH), size=3.0)
        mask = None if given == "each" else torch.rand(COUNT, 2, *PATCH)
    alpha = torch.ones(COUNT, 2, *PATCH) if mask is None else mask
    before = inc.materialize(images)[index]
    got = inc.forward_patches(patches, where, base_index=index, mask=mask)
    full = images[index]
    for box in (0, 1):
        full = mixed(full, shown[:, box], where[:, box], alpha[:, box, None].expand(-1, 3, -1, -1))
    check(inc, got, full, before, seed)


def test_a_shared_box_is_materialised_once(inc: kcompile.IncrementalModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of a grid: as many patched bases as first boxes, each query once."""
    grid = np.array([(row, col) for row in range(0, 25, 8) for col in range(0, 32, 8)])
    pairs = np.array([(a, b) for i, a in enumerate(grid) for b in grid[i + 1 :]])
    made = []
    run = two_boxes.TwoBoxes._on_bases

    def counted(self: Any, queries: Any, first: Any, rows: Any) -> Any:
        made.append(np.unique(first[rows]))
        yield from run(self, queries, first, rows)

    monkeypatch.setattr(two_boxes.TwoBoxes, "_on_bases", counted)
    monkeypatch.setattr(
        inc.executor().choice, "full_batch", 0.0
    )  # else full inference of so small a network costs most
    image = noise(SHAPE)
    before = inc.materialize(image)
    got = inc.forward_patches(0.0, pairs)
    numbers = np.concatenate(made)
    assert len(numbers) == len(np.unique(numbers)) > len(grid) // 2
    assert max(map(len, made)) <= two_boxes.BASES
    zeros = torch.zeros(len(pairs), 3, *PATCH)
    full = paste(paste(image.expand(len(pairs), -1, -1, -1), zeros, pairs[:, 0]), zeros, pairs[:, 1])
    check(inc, got, full, before, 0)


class Maps(nn.Module):
    """A map, the same map with channels last, scores, and a map of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn_relu(3, 6), nn.MaxPool2d(2), conv_bn_relu(6, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        mean = y.mean((2, 3), keepdim=True)
        return {"map": y, "last": y.permute(0, 2, 3, 1) * 2, "scores": mean.flatten(1), "all": y - mean}


@pytest.fixture(scope="module")
def maps() -> kcompile.IncrementalModule:
    """The network with maps."""
    return incremental(ready(Maps(), SHAPE, torch.float32), SHAPE, PATCH)


@pytest.mark.parametrize("boxes", [1, 2])
def test_regions(maps: kcompile.IncrementalModule, boxes: int, seed: int) -> None:
    """A region pasted over the base's output is the full output; what has no region is returned whole."""
    where = positions(seed, COUNT, 2)[:, :boxes].squeeze(1) if boxes == 1 else positions(seed, COUNT, 2)
    index = np.arange(COUNT) % 2
    before = maps.materialize(noise((2, *SHAPE)))
    patches = noise((3, *PATCH), size=3.0)
    full = maps.forward_patches(patches, where, base_index=index)
    got = maps.forward_patches(patches, where, base_index=index, output="region")
    for name in ("map", "last"):
        assert isinstance(got[name], MapRegion)
        torch.testing.assert_close(got[name].paste(before[name], index), full[name])
        if boxes == 1:
            assert got[name].values[0].numel() < before[name][0].numel() / 2
    for name in ("scores", "all"):
        torch.testing.assert_close(got[name], full[name])


def test_regions_of_no_queries(maps: kcompile.IncrementalModule) -> None:
    """An empty result of the right structure."""
    maps.materialize(noise(SHAPE))
    got = maps.forward_patches(0.0, np.zeros((0, 2), dtype=int), output="region")
    assert got["map"].values.shape[:2] == (0, 4)
    assert got["map"].origins.shape == (0, 2)
    assert got["scores"].shape == (0, 4)


def test_regions_of_nothing() -> None:
    """No patch of the call lies where a strided layer looks."""
    inc = incremental(ready(nn.Conv2d(3, 4, 1, stride=8), SHAPE, torch.float32), SHAPE, (2, 2))
    before = inc.materialize(noise(SHAPE))
    got = inc.forward_patches(9.0, [[1, 1], [2, 2], [10, 3]], output="region")
    assert got.values.shape == (3, 4, 0, 0)
    torch.testing.assert_close(got.paste(before), before.expand(3, -1, -1, -1))


def test_an_empty_slice(seed: int) -> None:
    """What crops by a computed amount may join nothing."""
    model = ready(nn.Sequential(conv_bn_relu(3, 4), Call(lambda y: torch.cat([y[:, :, :0], y], 2))), SHAPE)
    inc = incremental(model, SHAPE, PATCH)
    image, where = noise(SHAPE, torch.float64), positions(seed, COUNT)
    before = inc.materialize(image)
    patches = noise((COUNT, 3, *PATCH), torch.float64, 3.0)
    check(
        inc, inc.forward_patches(patches, where), paste(image.expand(COUNT, -1, -1, -1), patches, where), before, seed
    )


def test_numbers_that_overflow(seed: int) -> None:
    """Infinite only in the model's type: NaN is not lost to fused activations."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), SHAPE, torch.float32)
    inc = incremental(model, SHAPE, PATCH)
    inc.materialize(noise(SHAPE))
    large = inc.forward_patches(torch.tensor(1e39, dtype=torch.float64), positions(seed, 3))
    infinite = inc.forward_patches(torch.inf, positions(seed, 3))
    assert bool(infinite.isnan().any())
    torch.testing.assert_close(large, infinite, equal_nan=True)


def test_a_join_keeps_the_sign_of_zero() -> None:
    """Along rows, too: 1 / -0.0 is -inf."""
    model = Call(lambda y: 1 / torch.cat([-y.relu(), y], 2))
    inc = incremental(model, SHAPE, PATCH)
    image = noise(SHAPE)
    inc.materialize(image)
    got = inc.forward_patches(-1.0, [[3, 4]])
    want = model(paste(image[None], torch.full((1, 3, *PATCH), -1.0), np.array([[3, 4]])))
    assert torch.equal(got, want)
    assert bool((want == -torch.inf).any())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"mask": torch.ones(7, 5)}, "a 7x5 mask does not fit"),
        ({"mask": torch.ones(3, 6, 5)}, "the mask has shape (3, 6, 5); allowed are [h, w], [2, h, w] and [2, 3, h, w]"),
        ({"mask": torch.full((6, 5), 1.5)}, "the mask has values outside 0 … 1"),
        ({"mask": torch.ones(6, 5) * 1j}, "the mask must be real numbers, got torch.complex64"),
        ({"mask": "disc"}, "the mask must be numbers or a tensor, got str"),
        ({"mask": torch.ones(4, 4), "patches": torch.zeros(3, 6, 5)}, "the mask is 4x4, the patch 6x5"),
        ({"channels": 3}, "channels is 3; allowed are numbers of the image's channels, 0 … 2"),
        ({"channels": []}, "channels is []"),
        ({"channels": [0.5]}, "channels is [0.5]"),
        ({"output": "box"}, 'output is \'box\'; allowed are "full" and "region"'),
        ({"positions": [[[1, 1], [2, 2]]], "patches": torch.zeros(1, 3, 6, 5)}, "[3, h, w] and [N, 2, 3, h, w]"),
        ({"positions": [[[1, 1], [2, 99]]]}, "position (2, 99) (index 0) puts a 6x5 patch wholly outside"),
        ({"positions": [[[1, 1]]]}, "positions must have shape [N, 2], got (1, 1, 2)"),
    ],
)
def test_bad_queries(inc: kcompile.IncrementalModule, keywords: dict[str, Any], message: str) -> None:
    """Each says what was given and what is allowed."""
    inc.materialize(noise(SHAPE))
    given = {"patches": 0.0, "positions": [[1, 1], [2, 2]], **keywords}
    with refused(kcompile.KCompileError, message):
        inc.forward_patches(given.pop("patches"), given.pop("positions"), **given)
