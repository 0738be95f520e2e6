"""Whole networks in ONNX Runtime: against the torch runtime, and against full inference of really patched images."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import kcompile
from kcompile.core.interval import IntArray
from tests.support.equivalence import NETWORKS, Factory, full_inference, noise, reacting, some_positions
from tests.support.exported import assert_alike, exported
from tests.support.networks import conv_bn_relu


class UNet(nn.Module):
    """Two levels down and up: one way up by a transposed convolution, the other by resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv_bn_relu(3, 8), conv_bn_relu(8, 16), conv_bn_relu(16, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.left, self.right, self.head = conv_bn_relu(32, 16), conv_bn_relu(24, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        two = self.second(F.max_pool2d(one, 2))
        three = self.third(F.max_pool2d(two, 2))
        up = self.left(torch.cat([self.up(three), two], 1))
        up = F.interpolate(up, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.right(torch.cat([up, one], 1)))


ALL: dict[str, tuple[int, Factory]] = {
    **{name: NETWORKS[name] for name in ("VGG16", "ResNet18", "Inception3", "GoogLeNet", "DenseNet121")},
    "MobileNetV3": (224, torchvision.models.mobilenet_v3_large),
    "EfficientNet-B0": (224, torchvision.models.efficientnet_b0),
    "ConvNeXt-Tiny": (224, torchvision.models.convnext_tiny),
    "U-Net": (96, UNet),
}
QUICK = {"U-Net": 64, "ResNet18": 64}  # smaller images


def check(name: str, size: int, folder: Path, rng: np.random.Generator) -> None:
    shape, patch = (3, size, size), (16, 16)
    model = _calm(ALL[name][1], shape)
    inc = kcompile.incrementalize(model, shape, patch)
    inc.policy = "incremental"
    found, image = exported(inc, folder, score="logit"), noise(shape)
    before = inc.materialize(image)
    assert_alike(found.materialize(image), before, share=1e-3)
    for sizes, contents in ((patch, noise((6, 3, *patch), size=3.0)), ((3, 11), torch.full((6, 3, 3, 11), -2.0))):
        positions = some_positions(shape[1:], sizes, rng)
        full = full_inference(model, image[None], contents, positions)
        allowed = _allowed(model, image, contents, positions, full)
        got = found.forward_patches(contents, positions)
        assert_alike(got, inc.forward_patches(contents, positions), before, share=2 * allowed)
        assert_alike(got, full, before, share=allowed)
        for count in (0, 1):
            some = found.forward_patches(contents[:count], positions[:count])
            assert some.shape == full[:count].shape
            assert np.abs(some - full[:count].numpy()).max(initial=0) <= allowed * float(full.abs().max())
    if before.dim() == 2:
        one = found.run_heatmap(image, contents[0], positions=positions)["scores"]
        want = full_inference(model, image[None], contents[:1], positions)
        allowed = _allowed(model, image, contents[:1].expand_as(contents), positions, want)
        assert np.abs(one - want.numpy()).max() <= allowed * float(want.abs().max())


@torch.no_grad()
def _calm(make: Factory, shape: tuple[int, ...]) -> nn.Module:
    """A reacting network, of six the one that amplifies rounding least: with random weights some do so by 10,000."""
    found: list[tuple[float, nn.Module]] = []
    while len(found) < 6 and (not found or found[-1][0] > 1e-5):
        model, images = reacting(make(), noise((2, *shape))), noise((3, *shape), size=2.0)
        exact = copy.deepcopy(model).double()(images.double())
        found.append((float((model(images) - exact).abs().max() / exact.abs().max()), model))
    return min(found, key=lambda pair: pair[0])[1]


def _allowed(model: nn.Module, image: Tensor, patches: Tensor, positions: IntArray, full: Tensor) -> float:
    """1e-4 of the scale; five times the plain model's own rounding, where random weights amplify it beyond that."""
    exact = full_inference(copy.deepcopy(model).double(), image[None].double(), patches.double(), positions)
    return max(1e-4, 5 * float((full - exact).abs().max() / exact.abs().max()))


@pytest.mark.parametrize("name", QUICK)
def test_small_images(name: str, tmp_path: Path, seed: int) -> None:
    check(name, QUICK[name], tmp_path, np.random.default_rng(seed))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization of (GoogleNet|inception_v3):FutureWarning")
@pytest.mark.parametrize("name", ALL)
def test_usual_images(name: str, tmp_path: Path, seed: int) -> None:
    check(name, ALL[name][0], tmp_path, np.random.default_rng(seed))


def test_many_queries(tmp_path: Path, seed: int) -> None:
    shape = (3, 48, 40)
    model = reacting(nn.Sequential(conv_bn_relu(3, 8), nn.MaxPool2d(2), conv_bn_relu(8, 4)), noise((2, *shape)))
    inc = kcompile.incrementalize(model, shape, 8)
    inc.policy = "incremental"
    found, image = exported(inc, tmp_path), noise(shape)
    before, _ = inc.materialize(image), found.materialize(image)
    positions = np.random.default_rng(seed).integers(-7, 40, (500, 2))
    assert_alike(found.forward_patches(1.5, positions), inc.forward_patches(1.5, positions), before)
