"""Canonicalisation, pass by pass: what it turns into what, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kcompile.core.errors import VerificationError
from kcompile.passes import canonicalize
from kcompile.passes.average_pool import SplitAveragePool
from kcompile.passes.canonicalize import (
    PASSES,
    DropNoOps,
    FoldBatchNorm,
    FoldConstants,
    SelectToSlice,
    ViewToReshape,
)
from kcompile.passes.capture import capture
from kcompile.passes.infra import GraphPass, PassResult, aten, run_passes
from tests.support.networks import Call, DenseBlock, conv, ready

SHAPE = (4, 9, 11)
BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"


def captured(model: nn.Module) -> fx.GraphModule:
    return capture(ready(model, SHAPE), torch.randn(2, *SHAPE).double()).module


def ops(module: fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in module.graph.nodes if node.op == "call_function")


def check(step: GraphPass, model: nn.Module, modified: bool, before: str, after: str, left: int = 0) -> fx.GraphModule:
    """Apply one pass twice: op ``before`` becomes ``after``, the numbers stay, and the second time nothing changes."""
    module = captured(model)
    assert not before or ops(module)[before]
    result = run_passes(module, [step])
    images = torch.randn(3, *SHAPE).double()
    with torch.no_grad():
        torch.testing.assert_close(result.module(images)[0], model(images), rtol=1e-12, atol=1e-12)
    assert result.modified == modified
    assert ops(result.module)[before] == left
    assert not after or ops(result.module)[after]
    assert not run_passes(result.module, [step]).modified
    return result.module


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda x: F.dropout(x, 0.5, training=False) + 1, ""),
        (lambda x: x.clone() + 1, "aten.clone.default"),
        (lambda x: x.contiguous() + 1, ""),
        (lambda x: x.reshape(x.shape[0], 4, 9, 11) + 1, "aten.view.default"),
        (lambda x: x.expand(-1, 4, 9, 11) + 1, "aten.expand.default"),
        (lambda x: F.adaptive_avg_pool2d(x, (9, 11)) + 1, ""),
        (lambda x: x[:, :, 0:] + 1, "aten.slice.Tensor"),
    ],
)
def test_no_ops_are_dropped(function: Callable[[Tensor], Tensor], op: str, seed: int) -> None:
    module = captured(Call(function))
    result = run_passes(module, [DropNoOps()])
    assert not op or result.modified
    assert ops(result.module) == {"aten.add.Tensor": 1}
    images = torch.randn(3, *SHAPE).double()
    assert torch.equal(result.module(images)[0], function(images))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(x.shape[0], 4, 99),
        lambda x: x.reshape(x.shape[0], 4, 11, 9),
        lambda x: F.adaptive_avg_pool2d(x, (9, 1)),
        lambda x: x[:, :, 1:],
        lambda x: x[:, 0:4:2],
        lambda x: x.to(torch.float32),
    ],
)
def test_what_changes_something_stays(function: Callable[[Tensor], Tensor], seed: int) -> None:
    result = run_passes(captured(Call(function)), [DropNoOps()])
    images = torch.randn(3, *SHAPE).double()
    mine, want = result.module(images)[0], function(images)
    assert mine.dtype == want.dtype
    assert torch.equal(mine, want)


def test_views_become_reshapes(seed: int) -> None:
    model = nn.Sequential(conv(4, 3), nn.Flatten(), nn.Linear(3 * 99, 2))
    check(ViewToReshape(), model, True, "aten.view.default", "aten.reshape.default")


def test_channels_last_tensors_can_be_flattened(seed: int) -> None:
    module = run_passes(captured(nn.Sequential(conv(4, 3), nn.Flatten())), PASSES).module
    images = torch.randn(2, *SHAPE).double()
    torch.testing.assert_close(module(images.to(memory_format=torch.channels_last))[0], module(images)[0])


@pytest.mark.parametrize("channel", [0, 2, -1])
def test_selected_channels_become_slices(channel: int, seed: int) -> None:
    model = Call(lambda x: torch.unsqueeze(x[:, channel], 1) * 0.5)
    check(SelectToSlice(), model, True, "aten.select.int", "aten.slice.Tensor")


def test_the_input_transform_of_torchvision(seed: int) -> None:
    """GoogLeNet and Inception3 normalise channel by channel, then join them again."""

    def transform(x: Tensor) -> Tensor:
        channels = [torch.unsqueeze(x[:, i], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5 for i in range(3)]
        return torch.cat(channels, 1)

    module = check(SelectToSlice(), Call(transform), True, "aten.select.int", "aten.slice.Tensor")
    assert ops(module)["aten.unsqueeze.default"] == 0


@pytest.mark.parametrize(
    "function", [lambda x: x[:, 1], lambda x: x[:, :, 1].unsqueeze(2), lambda x: x[:, 1].unsqueeze(2)]
)
def test_other_selects_stay(function: Callable[[Tensor], Tensor], seed: int) -> None:
    check(SelectToSlice(), Call(function), False, "aten.select.int", "aten.select.int", left=1)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2, "groups": 2}, {"padding": "same"}])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_folded_into_the_convolution(options: dict[str, object], affine: bool, seed: int) -> None:
    model = nn.Sequential(conv(4, 6, **options), nn.BatchNorm2d(6, affine=affine), nn.ReLU())  # type: ignore[arg-type]
    module = check(FoldBatchNorm(), model, True, BATCH_NORM, "")
    assert ops(module)["aten.addcmul.default"] == 0
    assert sum(ops(module).values()) == 2


@pytest.mark.parametrize(
    "model",
    [
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, affine=False)),
        DenseBlock(4),
        nn.Sequential(nn.Linear(11, 3), nn.Flatten(2), nn.BatchNorm1d(4)),
    ],
)
def test_batch_norm_elsewhere_becomes_scale_and_shift(model: nn.Module, seed: int) -> None:
    check(FoldBatchNorm(), model, True, BATCH_NORM, "aten.addcmul.default")


class Shared(nn.Module):
    """A convolution whose result is also used without the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + self.norm(y)


class Twice(nn.Module):
    """One convolution with two norms: its weight must not be overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = conv(4, 4), nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.conv(x))
        return x


def test_a_convolution_that_others_use_is_not_folded(seed: int) -> None:
    check(FoldBatchNorm(), Shared(), True, BATCH_NORM, "aten.addcmul.default")


def test_a_convolution_called_twice_gets_two_weights(seed: int) -> None:
    model = Twice()
    module = check(FoldBatchNorm(), model, True, BATCH_NORM, "")
    assert sum("folded" in name and "bias" not in name for name, _ in module.named_buffers()) == 2


def test_the_models_own_weights_are_not_written_to(seed: int) -> None:
    model = ready(nn.Sequential(conv(4, 6), nn.BatchNorm2d(6)), SHAPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_passes(capture(model, torch.randn(2, *SHAPE).double()).module, PASSES)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_factors_are_computed_in_float64(seed: int) -> None:
    """In float32, a folded network is as near to the truth as the plain one."""
    model = ready(nn.Sequential(*(part for _ in range(4) for part in (conv(4, 4), nn.BatchNorm2d(4)))), SHAPE)
    images = torch.randn(4, *SHAPE).double()
    with torch.no_grad():
        want = model(images)
        plain = (model.float()(images.float()) - want).abs().max()
        module = run_passes(capture(model, torch.randn(2, *SHAPE)).module, PASSES).module
        assert (module(images.float())[0] - want).abs().max() <= 4 * plain


def test_constants_are_folded(seed: int) -> None:
    model = Call(lambda x, a, b: x * (a.sigmoid() + b * 2).reshape(1, 4, 1, 1), a=torch.randn(4), b=torch.randn(4))
    module = check(FoldConstants(), model, True, "aten.sigmoid.default", "aten.mul.Tensor")
    assert sum(ops(module).values()) == 1


class Standardised(nn.Conv2d):
    """Weight standardisation: batch norm on the weights (as in timm's ResNetV2)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def test_standardised_weights_are_folded(seed: int) -> None:
    module = captured(Standardised(4, 3, 3))
    folded = run_passes(module, PASSES)
    images = torch.randn(2, *SHAPE).double()
    assert torch.allclose(folded.module(images)[0], module(images)[0], atol=1e-12)


@pytest.mark.parametrize(
    ("pool", "split"),
    [
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), True),
        (nn.AvgPool2d(2, ceil_mode=True), True),
        (nn.AvgPool2d((4, 3), (3, 2), 1, ceil_mode=True), True),
        (nn.AvgPool2d((4, 3), (3, 2), 1, ceil_mode=True, count_include_pad=False), True),
        (nn.AvgPool2d(3, 2, 1), False),
        (nn.AvgPool2d(3, 2), False),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False, divisor_override=4), False),
        (nn.AvgPool2d(3, 2, ceil_mode=True), False),  # 9 and 11 rows: no window is cut
    ],
)
def test_average_pools_with_several_divisors_are_split(pool: nn.Module, split: bool, seed: int) -> None:
    op = "aten.avg_pool2d.default"
    module = check(SplitAveragePool(), pool, split, op, "aten.div.Tensor" if split else op, left=1)
    overrides = [node.args[6] for node in module.graph.nodes if str(node.target) == op and len(node.args) > 6]
    assert not split or overrides == [1]


class Nothing:
    """A pass that claims to have dropped what is still there."""

    name = "nothing"

    def apply(self, module: fx.GraphModule) -> PassResult:
        return PassResult(module, False)


@pytest.mark.parametrize(
    ("step", "model"),
    [
        (DropNoOps(), Call(lambda x: x.clone())),
        (ViewToReshape(), nn.Flatten()),
        (FoldBatchNorm(), nn.BatchNorm2d(4)),
        (FoldConstants(), Call(lambda x, c: x + c.exp(), c=torch.ones(1))),
        (SplitAveragePool(), nn.AvgPool2d(2, ceil_mode=True)),
    ],
)
def test_postconditions_find_what_was_left(step: GraphPass, model: nn.Module, seed: int) -> None:
    module = captured(model)
    assert step.postcondition(module)
    with (
        mock.patch.object(type(step), "apply", lambda self, module: PassResult(module, False)),
        pytest.raises(VerificationError, match=f"pass {step.name}: "),
    ):
        run_passes(module, [step])
    assert run_passes(captured(model), [step]).modified


@dataclass(frozen=True)
class Breaks:
    """Moves the first call behind the output's arguments are computed: use before definition."""

    name: str = "breaks"

    def apply(self, module: fx.GraphModule) -> PassResult:
        first, *_, last = (node for node in module.graph.nodes if node.op == "call_function")
        last.append(first)
        return PassResult(module, True)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        return None


def test_the_verifier_runs_after_every_pass(seed: int) -> None:
    with pytest.raises(VerificationError, match="pass breaks"):
        run_passes(captured(nn.Sequential(conv(4, 3), nn.ReLU())), [Breaks()])


def test_nothing_to_do_is_said(seed: int) -> None:
    module = captured(nn.Sequential(conv(4, 3), nn.ReLU()))
    assert not run_passes(module, list(PASSES)).modified


def test_all_passes_together(seed: int) -> None:
    model = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), DenseBlock(4), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten())
    module = captured(model)
    result = run_passes(module, list(PASSES))
    images = torch.randn(3, *SHAPE).double()
    with torch.no_grad():
        torch.testing.assert_close(result.module(images)[0], model(images), rtol=1e-12, atol=1e-12)
    assert result.modified
    assert all(step.postcondition(result.module) is None for step in PASSES)
    assert not run_passes(result.module, list(PASSES)).modified


def test_passes_have_names_of_their_own() -> None:
    names = {type(step): step.name for step in PASSES}
    assert len(set(names.values())) == len(names)
    assert canonicalize.PASSES is PASSES
    assert aten is torch.ops.aten
