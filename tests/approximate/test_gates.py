"""Held and linear gates against brute force; what is a gate and what is a head; execution in half precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile import Approximation, InputError
from kcompile.core.plan import Placement
from kcompile.variants import Changes, changed, has_arithmetic, has_gates
from tests.support.equivalence import incremental, reacting
from tests.support.networks import Residual, conv, conv_bn_relu
from tests.support.running import incremental_wherever_possible, paste

SHAPE, PATCH = (3, 22, 19), (5, 4)


@pytest.fixture(autouse=True)
def _without_the_cost_model() -> Iterator[None]:
    """Small maps would be dense."""
    with incremental_wherever_possible():
        yield


class Gated(nn.Module):
    """A map times (or plus) something made of its whole."""

    def __init__(self, gate: Callable[[Tensor], Tensor], *parts: nn.Module, plus: bool = False) -> None:
        super().__init__()
        self.gate, self.parts, self.plus = gate, nn.ModuleList(parts), plus
        self.held: Tensor | None = None
        self.offset: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(x if self.offset is None else x + self.offset) if self.held is None else self.held
        return x + g if self.plus else x * g


def squeeze(channels: int) -> Gated:
    parts = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 3, 1), nn.ReLU(), nn.Conv2d(3, channels, 1), nn.Sigmoid()
    )
    return Gated(parts, parts)


def eca(channels: int) -> Gated:
    line = nn.Conv1d(1, 1, 3, padding=1)
    return Gated(lambda x: line(x.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)[:, :, None, None], line)


def context(channels: int) -> Gated:
    point = nn.Conv2d(channels, channels, 1)
    return Gated(lambda x: point(x.amax((2, 3), keepdim=True)).tanh(), point, plus=True)


class Norm(nn.Module):
    """A group norm (or a layer norm over the whole map) whose statistics can be given."""

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm
        self.held: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.held is None:
            result: Tensor = self.norm(x)
            return result
        groups = self.norm.num_groups if isinstance(self.norm, nn.GroupNorm) else 1
        var, mean = torch.var_mean(self.held.unflatten(1, (groups, -1)).flatten(2), dim=2, correction=0)
        split = x.unflatten(1, (groups, -1))
        normed = (split - mean[:, :, None, None, None]) / (var + self.norm.eps).sqrt()[:, :, None, None, None]
        weight, bias = self.norm.weight, self.norm.bias
        if isinstance(self.norm, nn.GroupNorm):
            weight, bias = weight[:, None, None], bias[:, None, None]
        return normed.flatten(1, 2) * weight + bias


def net(first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        conv(3, 6), first, nn.ReLU(), conv(6, 8, 3, stride=2), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Sequential]] = {
    "squeeze": lambda: net(squeeze(6), squeeze(8)),
    "eca": lambda: net(eca(6), context(8)),
    "norms": lambda: net(Norm(nn.GroupNorm(3, 6)), Norm(nn.LayerNorm((8, 11, 10)))),
}


def some(model: nn.Module) -> tuple[kcompile.IncrementalModule, Tensor]:
    model = reacting(model, torch.randn(8, *SHAPE)).double()
    for part in model.modules():
        if isinstance(part, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return incremental(model, SHAPE, PATCH), torch.randn(*SHAPE, dtype=torch.float64)


def hold(model: nn.Sequential, image: Tensor) -> None:
    """Give every gate of a network its value for an image."""
    x = image[None]
    for part in model:
        if isinstance(part, Gated):
            part.held = part.gate(x)
        elif isinstance(part, Norm):
            part.held = x
        x = part(x)


@pytest.mark.parametrize("name", NETS)
def test_held_gates_by_hand(name: str, seed: int) -> None:
    model = NETS[name]()
    inc, image = some(model)
    options: Any = {"stride": 3, "score": "logit", "target": [0, 1, 2]}
    exact = kcompile.occlusion(inc, image, **options)[0]
    found = kcompile.occlusion(inc, image, **options, approximation=Approximation(gates="held"))[0]
    cut = kcompile.occlusion(inc, image, **options, approximation=Approximation(gates="held", cut="5"))[0]
    spots = found.positions.reshape(-1, 2)
    with torch.no_grad():
        hold(model, image)
        want = model(paste(image.expand(len(spots), *SHAPE), torch.zeros(len(spots), 3, *PATCH).double(), spots))
    scale = float(want.abs().max())
    for heat in (found, cut):  # behind the last gate the network is linear
        np.testing.assert_allclose(heat.all_scores.reshape(want.shape), want, rtol=0, atol=1e-6 * scale)
    assert np.abs(found.all_scores - exact.all_scores).max() > 1e-3 * scale
    np.testing.assert_allclose(found.base_scores, exact.base_scores, rtol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_behind_held_gates_all_is_incremental(name: str) -> None:
    inc, _ = some(NETS[name]())
    made = changed(inc, Changes(held=True))
    assert not [
        name for name in made.plan.layers if name.placement is Placement.DENSE and name.op == "aten.conv2d.default"
    ]
    assert any(layer.rule == "held" for layer in made.plan.layers)
    assert has_gates(inc)
    assert made.work_share() < 0.8 * inc.work_share()


def test_a_map_beside_the_head_makes_no_gate_of_it() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = conv_bn_relu(3, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            return self.head(x.mean((2, 3))), x

    assert not has_gates(incremental(Both().eval(), SHAPE, PATCH))


@pytest.mark.parametrize("name", ["squeeze", "eca"])
def test_extents_with_held_gates(name: str, seed: int) -> None:
    """They are those of the network whose gates are constants."""
    model = NETS[name]()
    inc, image = some(model)
    options: Any = {"keep": 0.6, "positions": 30, "seed": seed}
    found = kcompile.measure_extents(inc, image, **options, held=True)
    heat = kcompile.occlusion(inc, image, stride=6, approximation=Approximation(gates="held", extents=found))
    assert heat.approximation is not None
    with torch.no_grad():
        hold(model, image)
    constant = kcompile.measure_extents(incremental(model, SHAPE, PATCH), image, **options)
    assert len(found) > 2
    assert [cells for _, cells in found] == [cells for _, cells in constant]


def test_heads_are_no_gates(seed: int) -> None:
    """What ends in the output is not held, also where two heads are joined."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(conv_bn_relu(3, 6), Residual(6, 8, 2))
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            result: Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))
            return result

    inc, image = some(Heads())
    assert changed(inc, Changes(held=True)).plan == inc.plan
    assert not has_gates(inc)
    for settings in (Approximation(gates="held", tau=0.5), Approximation(gates="linear", cut=0.5)):
        with pytest.raises(InputError, match=f"gates is '{settings.gates}', but this model has no global gates"):
            kcompile.occlusion(inc, image, approximation=settings)


@pytest.mark.parametrize("cut", ["5", 0.99])
@pytest.mark.parametrize("name", ["squeeze", "eca"])
def test_linear_gates_by_hand(name: str, cut: str | float, seed: int) -> None:
    """Held gates, and the gradient of each gate's input times its change; the second gate sees the first."""
    model = NETS[name]()
    inc, image = some(model)
    settings = Approximation(gates="linear", cut=cut)
    options: Any = {"stride": 3, "score": "logit", "target": 1}
    heat = kcompile.occlusion(inc, image, **options, approximation=settings)
    held = kcompile.occlusion(inc, image, **options, approximation=Approximation(gates="held", cut=cut))
    spots = heat.positions.reshape(-1, 2)
    gates = [part for part in model if isinstance(part, Gated)]
    inputs: list[list[Tensor]] = [[], []]
    handles = [
        gate.register_forward_pre_hook(lambda _, x, into=into: into.append(x[0]))
        for gate, into in zip(gates, inputs, strict=True)
    ]
    with torch.no_grad():
        hold(model, image)
        for into in inputs:
            into.clear()
        model(image[None])
        copies = paste(image.expand(len(spots), *SHAPE), torch.zeros(len(spots), 3, *PATCH).double(), spots)
        want = model(copies)[:, 1]
    for handle in handles:
        handle.remove()
    for gate in gates:
        gate.held = None

    def score(*offsets: Tensor) -> Tensor:
        for gate, offset in zip(gates, offsets, strict=True):
            gate.offset = offset
        result: Tensor = model(image[None])[0, 1]
        return result

    zeros = tuple(torch.zeros_like(base) for base, _ in inputs)
    slopes = torch.autograd.functional.jacobian(score, zeros)
    for slope, (base, now) in zip(slopes, inputs, strict=True):
        want = want + ((now - base) * slope).flatten(1).sum(1)
    scale = float(want.abs().max())
    np.testing.assert_allclose(heat.scores.reshape(-1), want, rtol=0, atol=1e-6 * scale)
    assert np.abs(heat.scores - held.scores).max() > 1e-4 * scale, "void"  # a hundred times what may be off


def test_linear_gates_need_a_cut() -> None:
    inc, image = some(NETS["squeeze"]())
    with pytest.raises(InputError, match="needs a cut"):
        kcompile.occlusion(inc, image, approximation=Approximation(gates="linear"))
    with pytest.raises(InputError, match="allowed with linear gates is 'base'"):
        kcompile.occlusion(inc, image, approximation=Approximation(gates="linear", cut="5", reference="secant"))


@pytest.mark.parametrize("cut", [None, "1"])
def test_bfloat16(cut: str | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the float32 map, as the model's own rounding is; where the device has no such arithmetic, an error."""
    model = reacting(
        nn.Sequential(conv_bn_relu(3, 8), Residual(8, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        torch.randn(8, *SHAPE),
    )
    inc, image = incremental(model, SHAPE, PATCH), torch.randn(*SHAPE)
    settings = Approximation(dtype="bfloat16", cut=cut)
    monkeypatch.setattr("kcompile.variants.has_arithmetic", lambda *_: True)
    exact = kcompile.occlusion(inc, image, stride=3, score="logit", target=0)
    half = kcompile.occlusion(inc, image, stride=3, score="logit", target=0, approximation=settings)
    spots = exact.positions.reshape(-1, 2)
    copies = paste(image.expand(len(spots), *SHAPE), torch.zeros(len(spots), 3, *PATCH), spots)
    rounded = copy.deepcopy(model).bfloat16()(copies.bfloat16()).float() - model(copies)
    error = np.abs(half.scores - exact.scores).max()
    assert 1e-6 * np.abs(exact.scores).max() < error < 3 * rounded[:, 0].abs().max()
    assert next(model.parameters()).dtype is torch.float32
    monkeypatch.setattr("kcompile.variants.has_arithmetic", lambda *_: False)
    with pytest.raises(InputError, match="no arithmetic of that type"):
        kcompile.occlusion(inc, image, approximation=settings)


def test_has_arithmetic() -> None:
    assert isinstance(has_arithmetic(torch.bfloat16, torch.device("cpu")), bool)
    assert isinstance(has_arithmetic(torch.float16, torch.device("cpu")), bool)
