"""Models that are graphs already: programs of torch.export, graph modules of torch.fx."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

import kcompile
from tests.support.equivalence import PATCH, SHAPE, check, network, noise, refused
from tests.support.networks import conv, ready, vgg
from tests.support.running import incremental_wherever_possible


def export(model: nn.Module, batch: int = 2, size: Any = Dim.DYNAMIC, strict: bool = False) -> ExportedProgram:
    """With a dynamic batch, or a fixed one for ``size=None``."""
    return torch.export.export(
        model, (noise((batch, *SHAPE)),), dynamic_shapes=None if size is None else ({0: size},), strict=strict
    )


def made() -> nn.Module:
    return ready(network(), SHAPE, torch.float32)


FORMS: dict[str, Callable[[], Any]] = {
    "program": lambda: export(made()),
    "program's module": lambda: export(made()).module(),
    "program, up to 9 rows": lambda: export(made(), size=Dim("batch", min=1, max=9)),
    "program, functional": lambda: export(made()).run_decompositions({}),
    "program, core operators": lambda: export(made()).run_decompositions(),
    "program, flattened": lambda: export(ready(vgg(3, SHAPE[1:]), SHAPE, torch.float32)),
    "fx": lambda: fx.symbolic_trace(made()),
}


def compiled(model: Any) -> kcompile.IncrementalModule:
    with incremental_wherever_possible():
        return kcompile.incrementalize(model, SHAPE, PATCH)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_graphs_are_models(form: Callable[[], Any], tmp_path: Path, seed: int) -> None:
    model = form()
    inc = compiled(model)
    images = noise((4, *SHAPE))
    theirs = model.module() if isinstance(model, ExportedProgram) else model
    assert torch.equal(inc(images), theirs(images))
    assert torch.equal(inc(images[:1]), theirs(images[:1]))
    check(inc)
    check(inc.train().eval())
    check(deepcopy(inc))
    check(pickle.loads(pickle.dumps(inc)))
    inc.save(tmp_path / "a")
    check(kcompile.load(tmp_path / "a"))
    assert len({layer.op for layer in inc.plan.layers}) > 3
    check(inc.double(), dtype=torch.float64)


def test_weights_are_shared_with_the_program(seed: int) -> None:
    program = export(made())
    inc = compiled(program)
    check(inc)
    with torch.no_grad():
        next(iter(program.state_dict.values())).mul_(1.5)
    with pytest.raises(kcompile.StaleWeightsError):
        inc.materialize(noise(SHAPE))
    inc.refresh()
    check(inc)


def test_a_program_in_all_calls(seed: int) -> None:
    program, image = export(made()), noise(SHAPE)
    heat = kcompile.occlusion(program, image, PATCH, stride=7)
    want = kcompile.occlusion(compiled(program), image, stride=7)
    assert abs(heat.all_scores - want.all_scores).max() < 1e-5
    analysis = kcompile.analyze(program, SHAPE, PATCH)
    assert [layer.work for layer in analysis.layers] == [
        layer.work for layer in kcompile.analyze(compiled(program)).layers
    ]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", [lambda program: program, lambda program: program.module()])
def test_a_fixed_batch_is_refused(form: Callable[[ExportedProgram], Any], batch: int, seed: int) -> None:
    program = export(made(), batch, None)
    for call in (compiled, lambda model: kcompile.analyze(model, SHAPE, PATCH)):
        with refused(kcompile.InputError, f"fixed batch of {batch}", "dynamic_shapes", "at least two images"):
            call(form(program))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 4), nn.BatchNorm2d(4, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(self.conv(x)), 0.5, self.training).mean((2, 3))


def test_training_mode_is_refused(seed: int) -> None:
    traced = fx.symbolic_trace(Dropping().train())
    with refused(kcompile.ModelModeError, "norm: BatchNorm2d", "model.eval()"):
        compiled(traced)
    with refused(kcompile.ModelModeError, "random numbers", "model.eval()"):
        compiled(traced.eval())  # the dropout was traced in training mode
    check(compiled(fx.symbolic_trace(Dropping().eval())))
    with pytest.raises(kcompile.ModelModeError):
        compiled(export(Dropping().train()))


def test_what_is_no_model(seed: int) -> None:
    for thing in (print, "model", torch.zeros(3), network):
        with refused(kcompile.InputError, "torch.nn.Module", "ExportedProgram", type(thing).__name__):
            kcompile.incrementalize(thing, SHAPE, PATCH)  # type: ignore[arg-type]
    with refused(kcompile.InputError, "does not run", "missing"):
        compiled(export(made()).graph_module)  # takes its weights as inputs
