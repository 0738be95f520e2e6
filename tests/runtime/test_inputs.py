"""Models with several inputs: rows, tensors without rows, constants, structured arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kcompile
from tests.support.equivalence import assert_equivalent, noise, refused
from tests.support.running import incremental_wherever_possible, paste

SHAPE, PATCH = (3, 20, 23), (5, 4)
POSITIONS = np.array([[0, 0], [15, 19], [-2, 7], [8, 20], [9, 9]])


class Conditioned(nn.Module):
    """An image with what is known of the patient, a table of class vectors, a map beside it, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.film, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4), nn.Conv2d(6, 8, 3)

    def forward(
        self, x: Tensor, facts: Tensor, classes: Tensor, times: int = 2, *, beside: dict[str, Tensor] | None = None
    ) -> dict[str, Any]:
        y = self.stem(x) * self.film(facts)[:, :, None, None] * times
        if beside is not None:
            y = torch.cat([y, beside["map"]], 1)
        y = self.last(F.relu(y))
        y = y + (classes / classes.norm())[0][:, None, None]
        features = y.mean((2, 3))
        return {"logits": features @ classes.t(), "map": y, "facts": facts * 2, "classes": classes.t() + 1}


def given(rows: int, **other: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for so many images."""
    kwargs = {"beside": {"map": noise((rows, 2, *SHAPE[1:]))}, **other}
    return (noise((rows, *SHAPE)), noise((rows, 5)), noise((7, 8)), 3), kwargs


class ByName(nn.Module):
    """The conditioned model, called by names alone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Conditioned()

    def forward(self, *, image: Tensor, facts: Tensor, classes: Tensor, beside: dict[str, Tensor]) -> Any:
        return self.model(image, facts, classes, 3, beside=beside)


@pytest.fixture(scope="module")
def by_name() -> kcompile.IncrementalModule:
    """Compiled from a dict of arguments."""
    with incremental_wherever_possible():
        return kcompile.incrementalize(
            ByName().eval(), patch_shape=PATCH, example_inputs=named(1), patched_input="image"
        )


def named(rows: int) -> dict[str, Any]:
    """Arguments by name."""
    (image, facts, classes, _), kwargs = given(rows)
    return {"image": image, "facts": facts, "classes": classes, **kwargs}


@pytest.mark.parametrize("policy", ["incremental", "full"])
@pytest.mark.parametrize("rows", [1, 3])
def test_arguments_by_name(
    by_name: kcompile.IncrementalModule, rows: int, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of input; other class vectors on each `materialize`; queries of several bases."""
    monkeypatch.setattr(by_name, "policy", policy)
    for _ in range(2):
        call = named(rows)
        before = by_name.materialize(**call)
        plain = by_name.model(**call)
        for key in plain:
            torch.testing.assert_close(before[key], plain[key])
        index = np.arange(len(POSITIONS)) % rows
        patches = noise((len(POSITIONS), 3, *PATCH), size=3.0)
        got = by_name.forward_patches(patches, POSITIONS, base_index=index)
        call["image"] = paste(call["image"][index], patches, POSITIONS)
        call["facts"], call["beside"] = call["facts"][index], {"map": call["beside"]["map"][index]}
        with torch.no_grad():
            full = by_name.model(**call)
        for key in ("facts", "classes"):
            torch.testing.assert_close(got.pop(key), full.pop(key))
        before = {key: before[key][index] for key in ("logits", "map")}
        assert_equivalent(got, full, before, f"seed {torch.initial_seed()}")


def test_by_position_and_as_a_drop_in() -> None:
    """Arguments by position: the plain call is the model's own, and a lone image may come without batch."""
    model = Conditioned().eval()
    args = given(2)[0]
    with incremental_wherever_possible():
        inc = kcompile.incrementalize(_Positional(model), patch_shape=PATCH, example_inputs=args[:3])
    torch.testing.assert_close(inc(*args[:3])["logits"], model(*args[:2], args[2], 2, beside=None)["logits"])
    one = (args[0][0], args[1][0], args[2])
    before = inc.materialize(*one)
    torch.testing.assert_close(before["logits"], inc(one[0][None], one[1][None], one[2])["logits"])
    got = inc.forward_patches(0.5, POSITIONS)
    images = paste(args[0][:1].expand(5, -1, -1, -1), torch.full((5, 3, *PATCH), 0.5), POSITIONS)
    full = inc.model(images, args[1][:1].expand(5, -1), args[2])
    torch.testing.assert_close(got["map"], full["map"], atol=1e-5, rtol=1e-4)
    assert "reuse" in str(inc.plan)


class _Positional(nn.Module):
    """Four channels after the stem are too few for the last layer: two more of the image."""

    def __init__(self, model: Conditioned) -> None:
        super().__init__()
        self.model = model
        model.last = nn.Conv2d(4, 8, 3)

    def forward(self, x: Tensor, facts: Tensor, classes: Tensor) -> Any:
        return self.model(x, facts, classes)


class TwoImages(nn.Module):
    """Two pictures in one structured argument: what changed between them?"""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def forward(self, pair: dict[str, Tensor]) -> Tensor:
        before, after = self.body(pair["before"]), self.body(pair["after"])
        return (before - after).abs().flatten(1).unflatten(1, (4, -1)).sum(2)


@pytest.mark.parametrize("patched", ["before", "after"])
def test_either_of_two_images(patched: str) -> None:
    """A path into a structured argument; the other image is one of the base's own."""
    model = TwoImages().eval()
    pair = {"before": noise((2, *SHAPE)), "after": noise((2, *SHAPE))}
    with incremental_wherever_possible():
        inc = kcompile.incrementalize(model, patch_shape=5, example_inputs=(pair,), patched_input=(0, patched))
    before = inc.materialize(pair)
    index, patches = np.array([0, 1, 1, 0, 1]), noise((5, 3, 5, 5), size=3.0)
    got = inc.forward_patches(patches, POSITIONS, base_index=index)
    full = {key: images[index] for key, images in pair.items()}
    full[patched] = paste(full[patched], patches, POSITIONS)
    with torch.no_grad():
        assert_equivalent(got, model(full), before[index], f"seed {torch.initial_seed()}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda call: call.pop("facts"), "3 inputs are given"),
        (lambda call: call.update(facts=noise((2, 5))), "facts has shape (2, 5); allowed is (1, 5), a row for each"),
        (lambda call: call.update(classes=noise((6, 8))), "classes has shape (6, 8); allowed is (7, 8)"),
        (lambda call: call.update(facts=noise((1, 5)).double()), "facts has type torch.float64; the model computes"),
        (lambda call: call.update(image=noise((1, 3, 20, 24))), "the image has shape (1, 3, 20, 24)"),
        (lambda call: call["beside"].update(map=None), "beside['map'] has shape NoneType"),
        (lambda call: call.update(beside=None), "or in another structure"),
        (lambda call: call["beside"].update(map=1.0), "beside['map'] has shape float"),
    ],
)
def test_bad_inputs(by_name: kcompile.IncrementalModule, change: Any, message: str) -> None:
    """Each names the input and what is allowed."""
    call = named(1)
    change(call)
    with refused(kcompile.InputError, message):
        by_name.materialize(**call)


def test_a_constant_must_stay() -> None:
    """Tracing has made a constant of it."""
    model = nn.Module()
    model.forward = lambda x, factor: x * factor  # type: ignore[method-assign]
    inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=(noise((1, *SHAPE)), 2.5))
    inc.materialize(noise(SHAPE), 2.5)
    with refused(kcompile.InputError, "input 1 is 3.0, but was 2.5 at compilation"):
        inc.materialize(noise(SHAPE), 3.0)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "input_shape is missing"),
        ({"example_inputs": 3}, "example_inputs is a int; allowed are a tuple"),
        ({"example_inputs": (noise((1, *SHAPE)),), "patched_input": 1}, "patched_input=1 is not among them"),
        ({"example_inputs": {"x": noise((1, *SHAPE))}}, "patched_input=0 is not among them"),
        ({"example_inputs": (noise((1, 4)),)}, "patched_input=0 is a tensor (1, 4)"),
        ({"example_inputs": (noise((0, *SHAPE)),)}, "patched_input=0 is a tensor (0, 3, 20, 23)"),
        ({"example_inputs": (noise(SHAPE),), "patch_shape": (3, 3)}, "have shape (2, 20, 23); allowed is a batch"),
        (
            {"example_inputs": (noise((1, *SHAPE)),), "input_shape": (3, 9, 9)},
            "input_shape is (3, 9, 9), but the images",
        ),
    ],
)
def test_bad_examples(keywords: dict[str, Any], message: str) -> None:
    """Each says what was given."""
    with refused(kcompile.InputError, message):
        kcompile.incrementalize(nn.ReLU().eval(), **{"patch_shape": 3, **keywords})


def test_verify(by_name: kcompile.IncrementalModule) -> None:
    """All inputs, as the model is called."""
    found = kcompile.verify(by_name, named(2), positions=6)
    assert all(check.verdict == "ok" for check in found.outputs if check.name in ("['logits']", "['map']"))
