"""Whole networks in ONNX Runtime: against the torch runtime, and against full inference of really patched images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import kcompile
from benchmarks.zoo.react import make_reacting
from kcompile.core.onnx_files import HEATMAP
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
ALLOWED = 1e-4  # of the output's scale
QUICK = {"U-Net": 64, "ResNet18": 64}  # smaller images


def check(name: str, size: int, folder: Path, rng: np.random.Generator, many: int) -> None:
    """Patches of two sizes at all kinds of places, 0, 1, 7 and ``many`` at a time; the one model; OpenVINO."""
    shape, patch = (3, size, size), (16, 16)
    model = make_reacting(ALL[name][1](), noise((4, *shape)))
    inc = kcompile.incrementalize(model, shape, patch)
    inc.policy = "incremental"
    found, image = exported(inc, folder, score="logit"), noise(shape)
    before = inc.materialize(image)
    assert_alike(found.materialize(image), before, share=ALLOWED)
    for sizes, contents in ((patch, noise((7, 3, *patch), size=3.0)), ((3, 11), torch.full((7, 3, 3, 11), -2.0))):
        positions = np.concatenate([some_positions(shape[1:], sizes, rng), [[0, 0]]])
        full = full_inference(model, image[None], contents, positions)
        got = found.forward_patches(contents, positions)
        assert_alike(got, inc.forward_patches(contents, positions), before, share=ALLOWED)
        assert_alike(got, full, before, share=ALLOWED)
        for count in (0, 1):
            some = found.forward_patches(contents[:count], positions[:count])
            assert some.shape == full[:count].shape
            assert np.abs(some - full[:count].numpy()).max(initial=0) <= ALLOWED * float(full.abs().max())
    places = rng.integers(-15, size, (many, 2))
    assert_alike(found.forward_patches(1.5, places), inc.forward_patches(1.5, places), before, share=ALLOWED)
    if before.dim() == 2:
        want = full_inference(model, image[None], torch.full((1, 3, *patch), 1.5), positions).numpy()
        given = {"image": image[None].numpy(), "patch": np.full((3, *patch), 1.5, np.float32)}
        given |= {"positions": positions, "stride": np.zeros(2, np.int64)}
        one = found.run_heatmap(image, given["patch"], positions=positions)
        for scores in (one["scores"], _in_openvino(inc, folder / "inlined", given)):
            assert np.abs(scores - want).max() <= ALLOWED * np.abs(want).max()


def _in_openvino(inc: kcompile.IncrementalModule, folder: Path, given: Any) -> Any:
    openvino = pytest.importorskip("openvino")
    kcompile.export_onnx(inc, folder, score="logit", inline=True)
    core = openvino.Core()
    one = core.compile_model(core.read_model(folder / HEATMAP), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return one(given)["scores"]


@pytest.mark.parametrize("name", QUICK)
def test_small_images(name: str, tmp_path: Path, seed: int) -> None:
    check(name, QUICK[name], tmp_path, np.random.default_rng(seed), 33)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization of (GoogleNet|inception_v3):FutureWarning")
@pytest.mark.parametrize("name", ALL)
def test_usual_images(name: str, tmp_path: Path, seed: int) -> None:
    check(name, ALL[name][0], tmp_path, np.random.default_rng(seed), 500)


def test_many_queries(tmp_path: Path, seed: int) -> None:
    shape = (3, 48, 40)
    model = reacting(nn.Sequential(conv_bn_relu(3, 8), nn.MaxPool2d(2), conv_bn_relu(8, 4)), noise((2, *shape)))
    inc = kcompile.incrementalize(model, shape, 8)
    inc.policy = "incremental"
    found, image = exported(inc, tmp_path), noise(shape)
    before, _ = inc.materialize(image), found.materialize(image)
    positions = np.random.default_rng(seed).integers(-7, 40, (500, 2))
    assert_alike(found.forward_patches(1.5, positions), inc.forward_patches(1.5, positions), before)
