"""Fills in pixel units: transforms of torchvision and others, what they do to patches, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import v2

import kcompile
from tests.api.test_fills import brute_force, tinted
from tests.api.test_occlusion import PATCH, SHAPE, assert_map, network
from tests.support.equivalence import incremental, noise, refused

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
v1 = torchvision.transforms


class Standardise(nn.Module):
    """A user's own module, as a transform."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "v1": v1.Normalize(MEAN, STD),
    "v1, of pictures": v1.Compose([v1.Resize(40), v1.CenterCrop(30), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    "v1, of bytes": v1.Compose([v1.PILToTensor(), v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD)]),
    "v2": v2.Normalize(MEAN, STD),
    "v2, of pictures": v2.Compose(
        [v2.ToImage(), v2.Resize(33), v2.CenterCrop(20), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    ),
    "weights": torchvision.models.ResNet18_Weights.DEFAULT.transforms(),
    "weights, other size": torchvision.models.Inception_V3_Weights.DEFAULT.transforms(mean=MEAN, std=STD),
    "module": Standardise(),
    "sequential": nn.Sequential(v2.Normalize(MEAN, STD)),
    "with a batch": lambda x: Standardise()(x).unsqueeze(0),
}


def model_units(value: Any) -> Tensor:
    return torch.as_tensor((torch.as_tensor(value).reshape(-1).expand(3) - torch.tensor(MEAN)) / torch.tensor(STD))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("value", [0, 0.5, (0.1, 0.9, 0.4)])
def test_one_colour(transform: Callable[[Any], Any], value: Any) -> None:
    image = noise((3, 40, 30))
    patch = kcompile.Pixels(value, transform).source(image, PATCH)
    assert isinstance(patch, Tensor)
    want = model_units(value)[:, None, None].expand(3, *PATCH)
    torch.testing.assert_close(patch, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("shape", [(3, *PATCH), (3, 40, 30)], ids=["patch", "image"])
def test_many_colours(transform: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    """Where the transform changes the picture's size, a factor and an offset are read off."""
    image, value = noise((3, 40, 30)), torch.rand(shape)
    want = Standardise()(value)
    got = kcompile.Pixels(value, transform).source(image, PATCH)
    if isinstance(got, Tensor):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    else:
        at = np.array([[0, 0], [34, 25], [7, 11]])
        windows = torch.stack([want[:, row : row + 6, col : col + 5] for row, col in at.tolist()])
        torch.testing.assert_close(got(at), windows, rtol=1e-4, atol=1e-5)
    assert isinstance(got, Tensor) == (shape[1:] == PATCH)


def test_bytes() -> None:
    image, value = noise(SHAPE), torch.randint(0, 256, (3, *PATCH), dtype=torch.uint8)
    for name in ("weights", "v1, of bytes", "v2, of pictures"):
        got = kcompile.Pixels(value, TRANSFORMS[name]).source(image, PATCH)
        torch.testing.assert_close(got, Standardise()(value / 255), rtol=1e-4, atol=1e-4)
        one = kcompile.Pixels(torch.tensor(128, dtype=torch.uint8), TRANSFORMS[name]).source(image, PATCH)
        torch.testing.assert_close(one, Standardise()(torch.full((3, *PATCH), 128 / 255)), rtol=1e-4, atol=1e-4)


def test_units_of_another_range() -> None:
    """As those of computed tomography; a bend that is no factor works where the size stays."""
    image, patch = noise((1, 20, 20)), torch.linspace(-1000, 400, 30).reshape(1, 6, 5)
    windowed = v1.Lambda(lambda x: (x.clamp(-160, 240) + 160) / 400)
    got = kcompile.Pixels(patch, windowed).source(image, PATCH)
    torch.testing.assert_close(got, (patch.clamp(-160, 240) + 160) / 400)
    torch.testing.assert_close(kcompile.Pixels(40, windowed).source(image, PATCH), torch.full((1, *PATCH), 0.5))
    assert torch.equal(kcompile.Pixels(patch, torch.sigmoid).source(image, PATCH), torch.sigmoid(patch))
    double = kcompile.Pixels(0.1, lambda x: x * 3).source(image.double(), PATCH)
    assert double.dtype == torch.float64
    assert double[0, 0, 0] == pytest.approx(0.3, abs=1e-12)


def test_a_map(seed: int) -> None:
    model, image = network(), tinted()
    fill = kcompile.Pixels(1.0, TRANSFORMS["weights"])
    heat = kcompile.occlusion(incremental(model, SHAPE, PATCH), image, value=fill)
    patch = Standardise()(torch.ones(3, *PATCH))
    assert_map(heat, brute_force(model, image, heat, lambda row, col: patch))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("axes", [1, 3])
def test_other_axes(axes: int, channels: int) -> None:
    image = noise((channels, *[9] * axes))
    patch = kcompile.Pixels(4.0, lambda x: x / 2 - 1).source(image, (3,) * axes)
    assert torch.equal(patch, torch.ones(channels, *[3] * axes))


def equalise(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.std() + 1e-3)


@pytest.mark.parametrize(
    ("value", "transform", "message"),
    [
        (0.5, v1.Pad(2), "the transform makes several colours of a picture of one (padding, erasing, chance, …)"),
        (0.5, v1.CenterCrop(99), "the transform makes several colours"),
        (0.5, equalise, "the transform looks at more than each pixel (the whole picture's statistics"),
        (0.5, v1.RandomHorizontalFlip(1.0), "give the transform's pixel-by-pixel part alone, or value in the model's"),
        (0.5, lambda x: x + torch.rand(3, 1, 1), "the transform looks at more than each pixel"),
        (0.5, lambda x: x / x.max().clamp_min(1e-3), "the transform looks at more than each pixel"),
        (0.5, lambda x: x - x.min(), "the transform looks at more than each pixel"),
        (torch.rand(3, *PATCH), equalise, "the transform looks at more than each pixel"),
        (torch.rand(3, *PATCH), v1.Compose([v1.Resize(9), torch.sqrt]), "is no factor and offset per channel"),
        (torch.rand(SHAPE), v1.Compose([v1.Resize(9), v1.Grayscale(3)]), "is no factor and offset per channel"),
        (0.5, v1.Grayscale(1), "the transform returns torch.float32 (1, 25, 22); the model takes float images of 3"),
        (0.5, lambda x: x.byte(), "the transform returns torch.uint8"),
        (0.5, lambda x: {"pixels": x}, "the transform returns dict"),
        (
            0.5,
            lambda x: x.convert("RGB"),
            "the transform fails on a torch.float32 tensor of shape (3, 25, 22): 'Tensor'",
        ),
        (0.5, None, "the transform is a NoneType; allowed are functions of a tensor"),
        ("blur", equalise, "Pixels has the value 'blur'; allowed are numbers and tensors"),
        (kcompile.Noise(), equalise, "Pixels has the value Noise(seed=0)"),
        ([0.1, 0.2], equalise, "value has 2 numbers; the image has 3 channels"),
    ],
)
def test_what_is_refused(value: Any, transform: Any, message: str, seed: int) -> None:
    inc = incremental(network(), SHAPE, PATCH)
    with refused(kcompile.InputError, message):
        kcompile.occlusion(inc, noise(SHAPE), value=kcompile.Pixels(value, transform))
