"""Whole networks and compiled modules against full inference: networks that react, positions, comparisons."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import kcompile
from kcompile.core.interval import IntArray
from kcompile.passes import pipeline
from kcompile.passes.capture import Captured, Example, capture
from tests.support.networks import Residual, conv_bn_relu, pooled_head, ready
from tests.support.running import incremental_wherever_possible, paste

Factory = Callable[[], nn.Module]

SHAPE, PATCH = (3, 30, 37), (6, 5)  # of the small network

NETWORKS: dict[str, tuple[int, Factory]] = {
    "VGG16": (224, lambda: torchvision.models.vgg16(init_weights=False)),
    "ResNet18": (224, torchvision.models.resnet18),
    "Inception3": (299, lambda: torchvision.models.inception_v3(init_weights=False)),
    "GoogLeNet": (224, lambda: torchvision.models.googlenet(init_weights=False)),
    "DenseNet121": (224, torchvision.models.densenet121),
    "SqueezeNet": (224, torchvision.models.squeezenet1_1),
    "AlexNet": (224, torchvision.models.alexnet),
}


def reacting(model: nn.Module, images: Tensor) -> nn.Module:
    """Give a network weights with which it reacts to a patch; in place, in eval mode afterwards.

    In one run over ``images`` the norms' factors are perturbed and their statistics calibrated, and each convolution or
    linear layer is scaled so that its outputs spread by 1 (some networks have no norm); then all are perturbed.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # cumulative average
            norm.train()
            norm.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(norm.weight) < 0.3, -1.0, 1.0))
            norm.bias.uniform_(-0.5, 0.5)
        hooks = [layer.register_forward_hook(_spread_by_one) for layer in layers]
        model(images)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.weight.mul_(torch.empty_like(layer.weight).uniform_(0.9, 1.1))
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.add_(torch.randn_like(norm.running_mean) * 0.1 * norm.running_var.sqrt())
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))
    return model.eval()


def _spread_by_one(layer: Any, inputs: Any, output: Tensor) -> Tensor:
    factor = 1 / output.std()
    layer.weight.mul_(factor)
    if layer.bias is not None:
        layer.bias.mul_(factor)
    return output * factor


@contextmanager
def captured_once() -> Iterator[None]:
    """Capture each model once per type, however often it is compiled: torch.export takes nearly all the time."""
    seen: dict[tuple[int, torch.dtype], Captured] = {}

    def cached(model: nn.Module, example: Example) -> Captured:
        key = (id(model), example.images.dtype)
        if key not in seen:
            seen[key] = capture(model, example)
        module, graph = seen[key].module, fx.Graph()
        graph.output(graph.graph_copy(module.graph, val_map={}))
        return replace(seen[key], module=fx.GraphModule(module, graph))

    with mock.patch.object(pipeline, "capture", cached):
        yield


def incremental(model: nn.Module, shape: Sequence[int], patch: int | Sequence[int]) -> kcompile.IncrementalModule:
    """`kcompile.incrementalize`, but everything is incremental that can be: small maps would be dense."""
    with incremental_wherever_possible():
        return kcompile.incrementalize(model.eval(), shape, patch)


def some_positions(image: Sequence[int], patch: Sequence[int], rng: np.random.Generator) -> IntArray:
    """Six positions [6, axes]: two opposite corners, one corner that sticks out, an edge, the centre, an odd place."""
    last = np.subtract(image, patch)
    corner = rng.integers(0, 2, len(last))
    outside = rng.integers(0, 2, len(last)) * last
    outside = outside + np.where(outside > 0, 1, -1) * rng.integers(0, patch, len(last))
    edge = rng.integers(0, last + 1)
    axis = rng.integers(len(last))
    edge[axis] = rng.integers(0, 2) * last[axis]
    odd = rng.integers(0, (last + 1) // 2) * 2 + 1
    return rng.permutation(np.stack([corner * last, (1 - corner) * last, outside, edge, last // 2, odd]))


def noise(shape: Sequence[int], dtype: torch.dtype = torch.float32, size: float = 1.0) -> Tensor:
    """Normal random numbers."""
    return torch.randn(*shape, dtype=dtype) * size


def full_inference(model: nn.Module, images: Tensor, patches: Tensor, positions: IntArray, rows: int = 8) -> Any:
    """The plain model on really patched copies: image i (or the only one) with patch i at position i."""
    images = images.expand(len(positions), *images.shape[1:]) if len(images) == 1 else images
    patched = paste(images, patches.expand(len(positions), *patches.shape[-3:]), positions)
    with torch.no_grad():
        parts = [model(part) for part in patched.split(rows)]
    return parts[0] if len(parts) == 1 else pytree.tree_map(lambda *leaves: torch.cat(leaves), *parts)


def assert_equivalent(got: Any, full: Any, before: Any, where: str = "") -> None:
    """Hold incremental results against full inference, leaf by leaf (DESIGN: exactness).

    Every output must react: some patch changes it by at least 1e-3 of its scale, else the test is void. Then float32 is
    within 1e-4 of the scale, float64 within 1e-6 of each query's own change (at least of a thousandth of the largest).

    Args:
        got: What `forward_patches` returned.
        full: What the model returns for patched images.
        before: What the model returns for the images without patches; one row, or one per query.
        where: Said in the message.
    """
    assert pytree.tree_structure(got) == pytree.tree_structure(full)
    leaves = zip(*(pytree.tree_leaves(tree) for tree in (got, full, before)), strict=True)
    compared = 0
    for mine, want, base in leaves:
        if not isinstance(want, Tensor):
            assert mine == want
            continue
        _assert_close(mine, want, base, where)
        compared += 1
    assert compared, "void: no tensor among the outputs"


def _assert_close(mine: Tensor, want: Tensor, base: Tensor, where: str) -> None:
    assert mine.shape == want.shape, where
    assert mine.dtype == want.dtype, where
    change = (want - base).abs().flatten(1).amax(1)
    scale = want.abs().max()
    assert change.max() >= 1e-3 * scale > 0, (
        f"{where}: void, the model does not react ({change.max():.1e} of {scale:.1e})"
    )
    error = (mine - want).abs().flatten(1).amax(1)
    if want.dtype == torch.float64:
        allowed = 1e-6 * torch.maximum(change, 1e-3 * change.max())
    else:
        allowed = (1e-4 * scale).expand_as(error)
    worst = int((error / allowed).argmax())
    assert bool((error <= allowed).all()), (
        f"{where}: query {worst} is off by {error[worst]:.2e} (scale {scale:.2e}, change {change[worst]:.2e})"
    )


def network() -> nn.Module:
    """A small network for images of `SHAPE` and patches of `PATCH`."""
    return pooled_head(nn.Sequential(conv_bn_relu(3, 6), Residual(6, 8), nn.MaxPool2d(2)), 8)


def compiled(dtype: torch.dtype = torch.float32) -> kcompile.IncrementalModule:
    """The small network, reacting and compiled."""
    return incremental(ready(network(), SHAPE, dtype), SHAPE, PATCH)


def check(inc: kcompile.IncrementalModule, count: int = 5, dtype: torch.dtype = torch.float32) -> None:
    """Materialise an image and compare some queries."""
    image, positions = noise(SHAPE, dtype), np.random.default_rng().integers(-3, 30, (count, 2))
    before = inc.materialize(image)
    patches = noise((count, 3, *PATCH), dtype, 3.0)
    got = inc.forward_patches(patches, positions)
    assert_equivalent(got, full_inference(inc.model, image[None], patches, positions), before)


def refused(error: type[Exception], *parts: str) -> Any:
    """Expect an error whose message has these parts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))
