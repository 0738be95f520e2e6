"""What a hostile reader once got wrong numbers or crashes out of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kcompile


class Fn(nn.Module):
    """A function with modules."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.parts, x)


def conv(channels: int = 4, from_channels: int = 3) -> nn.Module:
    return nn.Conv2d(from_channels, channels, 3, padding=1)


def standardised(parts: nn.ModuleList, x: Tensor) -> Tensor:
    weight: Any = parts[0].weight
    return F.conv2d(x, F.batch_norm(weight.reshape(1, 4, -1), None, None, training=True).reshape(4, 3, 3, 3), padding=1)


def stateful(parts: nn.ModuleList, x: Tensor) -> Tensor:
    """A state is made from the batch's size before anything dense, with the batch second."""
    state = torch.zeros(1, x.shape[0], 4) + 0.5
    return torch.tanh(parts[0](x).amax((2, 3)).unsqueeze(0) + state)[0]


def batched_product(parts: nn.ModuleList, x: Tensor) -> Tensor:
    y = parts[0](x)
    return torch.bmm(y.reshape(-1, 2, 256), y.reshape(-1, 256, 2)).reshape(x.shape[0], -1)


CASES = {
    "chunks": Fn(lambda m, x: m[0](x).chunk(2, 1), conv()),
    "max with indices": Fn(lambda m, x: m[0](x).max(1), conv()),
    "strided": Fn(lambda m, x: torch.as_strided(m[0](x), (x.shape[0], 4, 256), (1024, 256, 1)), conv()),
    "complex": Fn(lambda m, x: torch.view_as_complex(m[0](x).reshape(-1, 4, 128, 2).contiguous()).abs(), conv()),
    "state": Fn(stateful, conv()),
    "standardised weights": Fn(standardised, conv()),
    "written input": Fn(lambda m, x: m[0](x.clone().sub_(0.7).div_(0.3)), conv()),
    "written image": Fn(lambda m, x: m[0](x.sub_(0.7).div_(0.3)), conv()),
    "relu in place": Fn(lambda m, x: m[0](x), nn.Sequential(nn.ReLU(inplace=True), conv())),
    "batched product": Fn(batched_product, conv()),
    "pad with the least float": Fn(lambda m, x: F.max_pool2d(F.pad(m[0](x), (1, 1, 1, 1), value=-3e38), 3), conv()),
    "squeeze": Fn(lambda m, x: m[1](m[0](x).mean((2, 3), keepdim=True).squeeze()), conv(), nn.Linear(4, 5)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [1, 5])
def test_equals_full_inference(name: str, count: int, seed: int) -> None:
    model = CASES[name].eval()
    inc = kcompile.incrementalize(model, (3, 16, 16), 4)
    image = torch.randn(3, 16, 16)
    kept = image.clone()
    inc.materialize(image)
    positions = np.random.default_rng(seed).integers(-2, 14, (count, 2))
    patch = 3 * torch.randn(3, 4, 4)
    patched = torch.nn.functional.pad(image, (4, 4, 4, 4)).repeat(count, 1, 1, 1)
    for row, (top, left) in enumerate(positions):
        patched[row, :, top + 4 : top + 8, left + 4 : left + 8] = patch
    patched = patched[:, :, 4:20, 4:20]
    found = torch.utils._pytree.tree_leaves(inc.forward_patches(patch, positions))
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(model(patched.clone()))
        base = torch.utils._pytree.tree_leaves(model(image.repeat(2, 1, 1, 1)))
    assert torch.equal(image, kept), "the caller's image was written to"
    change = max(float((e - b[0]).abs().max()) for e, b in zip(expected, base, strict=True))
    assert change > 1e-3, "void: the model does not react"
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-4)


def test_writes_through_data_are_noticed() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()).eval()
    inc = kcompile.incrementalize(model, (3, 16, 16), 4)
    model[0].weight.data.mul_(3.0)
    with pytest.raises(kcompile.StaleWeightsError, match="refresh"):
        inc.materialize(torch.randn(3, 16, 16))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
def test_nan_in_a_patch_spreads_as_in_full_inference(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), activation, conv(4, 8)).eval()
    inc = kcompile.incrementalize(model, (3, 32, 32), 8)
    image = torch.randn(1, 3, 32, 32)
    inc.materialize(image)
    image[:, :, 10:18, 10:18] = float("nan")
    with torch.no_grad():
        expected = model(image).isnan()
    assert expected.any()
    assert torch.equal(inc.forward_patches(float("nan"), [[10, 10]]).isnan(), expected)


def test_random_models_are_refused() -> None:
    with pytest.raises(kcompile.ModelModeError, match="random"):
        kcompile.incrementalize(Fn(lambda m, x: F.dropout(m[0](x), 0.5) + 1, conv()).eval(), (3, 16, 16), 4)


@pytest.mark.parametrize("mixed", [lambda m, x: m[0](x) - m[0](x)[-1:], lambda m, x: m[0](x) - m[0](x)[:1]])
def test_rows_that_mix_are_refused(mixed: Callable[..., Any]) -> None:
    with pytest.raises(kcompile.ModelModeError, match="one row of a batch changes another"):
        kcompile.incrementalize(Fn(mixed, conv()).eval(), (3, 16, 16), 4)


def test_outputs_without_rows_are_refused() -> None:
    with pytest.raises(kcompile.ModelModeError, match="no row for each"):
        kcompile.incrementalize(Fn(lambda m, x: (m[0](x), m[0](x).mean()), conv()).eval(), (3, 16, 16), 4)
    with pytest.raises(kcompile.CaptureError, match="batch's size"):
        kcompile.incrementalize(Fn(lambda m, x: (m[0](x), x.shape[0]), conv()).eval(), (3, 16, 16), 4)


@pytest.mark.parametrize("patches", [None, "a", [[1], [2, 3]]])
def test_patches_that_are_no_numbers(patches: Any) -> None:
    inc = kcompile.incrementalize(conv().eval(), (3, 16, 16), 4)
    inc.materialize(torch.randn(3, 16, 16))
    with pytest.raises(kcompile.InputError, match="patches must be numbers"):
        inc.forward_patches(patches, [[0, 0]])
