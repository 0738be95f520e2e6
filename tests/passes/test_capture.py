"""Capture: any structure of outputs, any batch; what can't be traced is refused in plain words."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kcompile.core.errors import CaptureError, ModelModeError
from kcompile.passes.capture import capture
from kcompile.passes.infra import inconsistency
from tests.support.networks import Call, DenseBlock, Residual, conv, conv_bn_relu, ready

SHAPE = (4, 9, 11)
Pair = namedtuple("Pair", ["scores", "features"])


def example() -> Tensor:
    return torch.randn(2, *SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("make", [lambda: Residual(4, 5), lambda: DenseBlock(4)])
def test_the_graph_computes_the_model_for_any_batch(make: Any, batch: int, seed: int) -> None:
    model = ready(make(), SHAPE)
    module = capture(model, example()).module
    images = torch.randn(batch, *SHAPE, dtype=torch.float64)
    assert torch.equal(module(images)[0], model(images))


def test_the_graph_has_one_input_and_calls_functions_only(seed: int) -> None:
    module = capture(ready(Residual(4, 5), SHAPE), example()).module
    assert inconsistency(module) is None
    assert [node.op for node in module.graph.nodes].count("placeholder") == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2,
        lambda x: (x * 2,),
        lambda x: [x, x.abs()],
        lambda x: {"out": x * 2, "aux": {"deep": x.abs(), "none": None}},
        lambda x: Pair(x * 2, (x, 3)),
        lambda x: (x, x),
    ],
)
def test_structured_outputs(function: Any, seed: int) -> None:
    model = Call(function).eval()
    captured = capture(model, example())
    images = example()
    mine = pytree.tree_unflatten(list(captured.module(images)), captured.out_spec)
    want = model(images)
    assert type(mine) is type(want)
    assert pytree.tree_structure(mine) == pytree.tree_structure(want)
    for got, leaf in zip(pytree.tree_leaves(mine), pytree.tree_leaves(want), strict=True):
        assert torch.equal(got, leaf) if isinstance(leaf, Tensor) else got == leaf


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(conv(4, 4), nn.BatchNorm2d(4)), "1"),
        (nn.Sequential(conv(4, 4), nn.Sequential(nn.Dropout(0.1))), "1.0"),
        (nn.BatchNorm2d(4), "model"),
        (nn.Dropout2d(), "model"),
    ],
)
def test_active_batch_norm_or_dropout_is_refused(model: nn.Module, name: str) -> None:
    with pytest.raises(ModelModeError, match=rf"training mode \({name}: .*model\.eval\(\)"):
        capture(model.double().train(), example())


def test_one_active_part_is_enough() -> None:
    model = ready(nn.Sequential(conv_bn_relu(4, 4), conv_bn_relu(4, 4)), SHAPE)
    model[1][1].train()  # type: ignore[index, union-attr]
    with pytest.raises(ModelModeError, match=r"1\.1"):
        capture(model, example())


def test_many_active_parts_are_abridged() -> None:
    model = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(5))).double()
    with pytest.raises(ModelModeError, match=r"\(0: BatchNorm2d, 1: BatchNorm2d, 2: BatchNorm2d, … would"):
        capture(model, example())


def test_training_mode_without_such_parts_is_fine(seed: int) -> None:
    capture(conv(4, 3).double().train(), example())


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_control_flow_on_data_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export could not trace Chooses: .*data-dependent") as caught:
        capture(Chooses().eval(), example())
    assert caught.value.__cause__ is not None
    assert "x.sum() > 0" in str(caught.value), "the message does not show the user's line"
    assert "test_capture.py" in str(caught.value)


def test_the_gradient_is_left_alone(seed: int) -> None:
    """Capture leaves the model as it was: weights, mode, gradients."""
    model = ready(Residual(4, 5), SHAPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, example())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
