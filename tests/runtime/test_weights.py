"""Copies, pickles and casts of a compiled module; changed weights are noticed."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.accepted import as_module
from tests.support.equivalence import PATCH, SHAPE, check, compiled, incremental, network, noise
from tests.support.networks import ready


def test_deepcopy(seed: int) -> None:
    inc = compiled()
    inc.materialize(noise(SHAPE))
    twin = deepcopy(inc)
    with pytest.raises(kcompile.NotMaterializedError, match="materialize"):
        twin.forward_patches(0.0, [[0, 0]])
    check(twin)
    with torch.no_grad():
        next(twin.model.parameters()).mul_(1.5)
    inc.forward_patches(0.0, [[0, 0]])  # the original knows nothing of it
    twin.refresh()
    check(twin)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_pickle(how: str, seed: int) -> None:
    inc = compiled()
    check(inc)
    if how == "pickle":
        again = pickle.loads(pickle.dumps(inc))
    else:
        file = io.BytesIO()
        torch.save(inc, file)
        again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert again.plan == inc.plan
    check(again)
    for part in ("front", "tail"):  # lowered as before
        ours, theirs = (getattr(module.executor(), part).graph.nodes for module in (inc, again))
        assert [str(node.target) for node in ours if node.op == "call_function"] == [
            str(node.target) for node in theirs if node.op == "call_function"
        ]
    again.refresh()
    check(again)


@pytest.mark.parametrize("cast", [lambda inc: inc.double(), lambda inc: inc.to(torch.float64)])
def test_a_cast_compiles_again(cast: Any, seed: int) -> None:
    """In float64 folded weights are those of a float64 model, not rounded to float32 before."""
    inc = compiled()
    inc.materialize(noise(SHAPE))
    assert cast(inc) is inc
    with pytest.raises(kcompile.NotMaterializedError):
        inc.forward_patches(0.0, [[0, 0]])
    check(inc, dtype=torch.float64)
    inc.refresh()
    check(inc, dtype=torch.float64)
    check(inc.float())


def test_a_cast_of_the_model_alone_is_noticed(seed: int) -> None:
    inc = compiled()
    inc.model.double()
    with pytest.raises(kcompile.StaleWeightsError, match=r"inc\.refresh\(\)"):
        inc.materialize(noise(SHAPE, torch.float64))
    inc.refresh()
    check(inc, dtype=torch.float64)


def _write(inc: kcompile.IncrementalModule) -> None:
    with torch.no_grad():
        next(inc.model.parameters()).mul_(1.5)


def _head(inc: kcompile.IncrementalModule) -> None:
    inc.model[3] = nn.Linear(8, 5).eval()  # type: ignore[operator]


def _load(inc: kcompile.IncrementalModule) -> None:
    inc.model.load_state_dict(ready(network(), SHAPE, torch.float32).state_dict())


def _statistics(inc: kcompile.IncrementalModule) -> None:
    name = next(name for name, _ in inc.model.named_buffers() if name.endswith("running_mean"))
    inc.model.get_buffer(name).add_(0.5)


def _data(inc: kcompile.IncrementalModule) -> None:
    parameter = next(inc.model.parameters())
    parameter.data = parameter.data + 1


def _permuted(inc: kcompile.IncrementalModule) -> None:
    """The same values in other places, whose sum is the same."""
    linear = inc.model[3]  # type: ignore[index]
    with torch.no_grad():
        linear.weight.copy_(linear.weight.flip(0))


CHANGES = [_write, _head, _load, _statistics, _data, _permuted]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(change: Any, seed: int) -> None:
    inc = compiled()
    check(inc)
    change(inc)
    for call in (lambda: inc.forward_patches(0.0, [[0, 0]]), lambda: inc.materialize(noise(SHAPE))):
        with pytest.raises(
            kcompile.StaleWeightsError, match=r"weights changed after compilation: call inc\.refresh\(\)"
        ):
            call()
    inc.to("cpu").float()  # a move must not hide it
    with pytest.raises(kcompile.StaleWeightsError):
        inc.materialize(noise(SHAPE))
    inc.refresh()
    with pytest.raises(kcompile.NotMaterializedError):
        inc.forward_patches(0.0, [[0, 0]])
    check(inc)


def test_moves_and_reads_of_the_weights_are_no_change(seed: int) -> None:
    inc = compiled()
    check(inc)
    inc.model.to(memory_format=torch.channels_last)
    inc.forward_patches(0.0, [[0, 0]])
    inc.model.load_state_dict(deepcopy(inc.model.state_dict()))  # written, but with the same values
    inc.model.requires_grad_(False)
    inc.model.eval()
    inc.forward_patches(0.0, [[0, 0]])
    inc.to(memory_format=torch.channels_last)
    check(inc)


def test_training_mode_is_refused(seed: int) -> None:
    inc = compiled()
    inc.materialize(noise(SHAPE))
    inc.train()
    with pytest.raises(kcompile.ModelModeError, match=r"inc\.eval\(\)"):
        inc.forward_patches(0.0, [[0, 0]])
    inc.eval()
    inc.forward_patches(0.0, [[0, 0]])


class Counting(nn.Module):
    """Writes into buffers: by a method, and by assignment. Its output depends on none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return self.body(x)  # type: ignore[no-any-return]


class Averaging(nn.Module):
    """Its output depends on a buffer that it writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.body(x) + self.calls  # type: ignore[no-any-return]


def _exported(model: nn.Module) -> Any:
    program = torch.export.export(model, (noise((2, *SHAPE)),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    return as_module(program)


@pytest.mark.parametrize("form", [lambda model: model, _exported])
def test_buffers_that_the_model_writes(form: Any, seed: int) -> None:
    """A counter's change is no change of the weights, and compiling leaves counters alone."""
    model = ready(Counting(), SHAPE, torch.float32)
    calls, mean = model.calls.clone(), model.mean.clone()  # type: ignore[operator]
    inc = incremental(form(model), SHAPE, PATCH)
    assert torch.equal(model.calls, calls)  # type: ignore[arg-type]
    assert torch.equal(model.mean, mean)  # type: ignore[arg-type]
    check(inc)
    inc(noise((2, *SHAPE)))
    inc.forward_patches(0.0, [[1, 2]])
    assert dict(inc.model.named_buffers())["calls"] > calls
    check(inc)
    _statistics(inc)
    with pytest.raises(kcompile.StaleWeightsError):
        inc.materialize(noise(SHAPE))


@pytest.mark.parametrize("form", [lambda model: model, _exported])
def test_buffers_that_outputs_rest_on(form: Any, seed: int) -> None:
    inc = incremental(form(ready(Averaging(), SHAPE, torch.float32)), SHAPE, PATCH)
    inc.materialize(noise(SHAPE))
    inc(noise((2, *SHAPE)))
    with pytest.raises(kcompile.StaleWeightsError):
        inc.forward_patches(0.0, [[1, 2]])
