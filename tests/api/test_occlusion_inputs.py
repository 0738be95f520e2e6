"""`kcompile.occlusion` of models with several inputs: all of them in place of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from tests.support.equivalence import noise, refused
from tests.support.networks import conv_bn_relu, pooled_head, ready
from tests.support.running import incremental_wherever_possible

SHAPE, PATCH = (3, 20, 23), (5, 4)


class Conditioned(nn.Module):
    """An image, facts beside it (a row each), and a table of class vectors that all images share."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ready(
            pooled_head(nn.Sequential(conv_bn_relu(3, 6), conv_bn_relu(6, 8)), 8, 4), SHAPE, torch.float32
        )
        self.facts = nn.Linear(5, 4)

    def forward(self, x: Tensor, facts: Tensor, classes: Tensor) -> Tensor:
        return torch.as_tensor((self.body(x) * 3 + self.facts(facts)) @ classes)


@pytest.fixture(scope="module")
def inc() -> kcompile.IncrementalModule:
    with incremental_wherever_possible():
        return kcompile.incrementalize(Conditioned().eval(), patch_shape=PATCH, example_inputs=call(2))


def call(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments for so many images."""
    return noise((rows, *SHAPE), size=2.0), noise((rows, 5)), noise((4, 4))


def brute_force(model: nn.Module, one: tuple[Tensor, ...], heat: kcompile.Heatmap, patch: Any) -> Any:
    image, facts, classes = one
    flat = heat.positions.reshape(-1, 2).tolist()
    images = image.repeat(len(flat), 1, 1, 1)
    for copy, (row, col) in zip(images, flat, strict=True):
        own = (slice(None), slice(row, row + 5), slice(col, col + 4))
        copy[own] = copy[own].mean((1, 2), keepdim=True) if patch == "patch-mean" else patch
    with torch.no_grad():
        scores = model(images, facts.expand(len(flat), -1), classes)
    return scores.reshape(*heat.scores.shape, -1).numpy()


def check(heat: kcompile.Heatmap, want: Any) -> None:
    scale = np.abs(want).max()
    assert np.abs(want - heat.base_scores).max() > 1e-3 * scale, "void: the model does not react"
    np.testing.assert_allclose(heat.all_scores, want, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("value", [1.0, "patch-mean"])
def test_every_image_with_its_own_inputs(inc: kcompile.IncrementalModule, value: Any, seed: int) -> None:
    """A batch of arguments, a list of calls, and calls with tables of their own."""
    images, facts, classes = call(3)
    other = noise((4, 4))
    calls = [(images[0], facts[0], classes), (images[1:2], facts[1:2], other), (images[2], facts[2], classes)]
    single = kcompile.occlusion(inc, calls[1], stride=3, value=value, score="logit")
    batch = kcompile.occlusion(inc, (images, facts, classes), stride=3, value=value, score="logit")
    listed = kcompile.occlusion(inc, calls, stride=3, value=value, score="logit")
    assert isinstance(single, kcompile.Heatmap)
    assert len(batch) == len(listed) == 3
    tables = [classes, other, classes]
    cases = [*zip(listed, tables, range(3), strict=True), *zip(batch, [classes] * 3, range(3), strict=True)]
    for heat, table, i in [*cases, (single, other, 1)]:
        want = brute_force(inc.model, (images[i : i + 1], facts[i : i + 1], table), heat, value)
        check(heat, want)


def test_inputs_by_name(seed: int) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Conditioned()

        def forward(self, *, facts: Tensor, classes: Tensor, image: Tensor) -> Tensor:
            return torch.as_tensor(self.inner(image, facts, classes))

    def named(rows: int) -> dict[str, Tensor]:
        image, facts, classes = call(rows)
        return {"image": image, "facts": facts, "classes": classes}

    model = Named().eval()
    inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=named(2), patched_input="image")
    one = named(1)
    heat = kcompile.occlusion(inc, one, stride=4, value=1.0, score="logit")
    want = brute_force(model.inner, (one["image"], one["facts"], one["classes"]), heat, 1.0)
    check(heat, want)
    assert len(kcompile.occlusion(inc, [named(1), named(1)])) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (call(1)[0], "1 inputs are given, or in another structure than that of compilation; allowed are input 0"),
        (call(1)[:2], "2 inputs are given"),
        ({"x": call(1)[0]}, "1 inputs are given"),
        ([call(1), call(1)[:2]], "image 1 of the list: 2 inputs are given"),
        ([call(1), call(2)], "image 1 of the list is a batch of 2; allowed is one image each"),
        ((call(2)[0], *call(1)[1:]), "has shape (1, 5); allowed is (2, 5), a row for each image"),
    ],
)
def test_bad_inputs(inc: kcompile.IncrementalModule, given: Any, message: str) -> None:
    with refused(kcompile.InputError, message):
        kcompile.occlusion(inc, given)
