"""What tells a map's kind from others: models, weights, fills, users' scores. A certificate is for one kind."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile import Blur, InputError, Noise, Pixels
from kcompile.experiment import experiment
from kcompile.identity import score_text, target_text
from tests.support.equivalence import reacting
from tests.support.networks import conv_bn_relu, pooled_head

SIZE, PATCH, STRIDE = 32, 8, 4
Image = torch.Tensor


class Scaled(nn.Module):
    """All weights alike; numbers of its own."""

    def __init__(self, scale: float = 1.0, slope: float = 0.01, eps: float = 1e-5, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=eps), nn.Linear(4, 3)
        self.act, self.scale, self.shift = nn.LeakyReLU(slope), scale, torch.tensor([shift])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.scale * self.norm(self.act(self.conv(x))) + self.shift)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def inc() -> Any:
    return compiled(Scaled())


def compiled(model: nn.Module) -> Any:
    return kcompile.incrementalize(model.eval(), (3, SIZE, SIZE), PATCH)


def kind_of(inc: Any, score: Any = "logit", value: Any = 0.0) -> Any:
    return experiment(inc, None, STRIDE, None, value, None, score, None).kind(None)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("other", [{"scale": 30.0}, {"slope": 0.9}, {"eps": 0.1}, {"shift": 1.0}], ids=str)
def test_the_same_weights_under_other_constants_are_another_model(inc: Any, other: dict[str, float]) -> None:
    assert kind_of(compiled(Scaled(**other))).model != kind_of(inc).model
    assert kind_of(compiled(Scaled())).model == kind_of(inc).model


def test_a_saved_module_is_the_same_model(inc: Any, tmp_path: Path) -> None:
    inc.save(tmp_path / "module.kc")
    assert kind_of(kcompile.load(tmp_path / "module.kc")).model == kind_of(inc).model


def test_weights_in_another_order_or_sign_are_another_model() -> None:
    model = reacting(pooled_head(conv_bn_relu(3, 8), 8), torch.randn(8, 3, SIZE, SIZE))
    kinds = [kind_of(compiled(model))]
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    for change in (Tensor.neg_, lambda weight: weight.copy_(weight.flip(1))):
        with torch.no_grad():
            change(last.weight)
        kinds.append(kind_of(compiled(model)))
    assert len({kind.model for kind in kinds}) == 3
    assert kind_of(compiled(copy.deepcopy(model))).model == kinds[-1].model


# ---------------------------------------------------------------- fills


def changed(image: Image) -> Image:
    image = image.clone()
    image[1, 5, 5] = 1.0
    return image


def norm(scale: float) -> Any:
    return lambda x: x / scale


class Step:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.scale


ZERO = torch.zeros(3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.123456, 0.123499), ([0.0, 0.0, 1e-9], 0.0), (ZERO, changed(ZERO)), ("mean", "patch-mean"),
        (Noise(1), Noise(2)), (Blur(2), Blur(3)), (Pixels(0.5, norm(0.5)), Pixels(0.5, norm(0.001))),
        (Pixels(0.5, Step(1)), Pixels(0.5, Step(100))), (Pixels(ZERO, Step(1)), Pixels(changed(ZERO), Step(1))),
        (Pixels(ZERO.numpy(), Step(1)), Pixels(changed(ZERO).numpy(), Step(1))),
    ],
)  # fmt: skip
def test_other_fills_are_told_apart(inc: Any, one: Any, other: Any) -> None:
    assert kind_of(inc, value=one).value != kind_of(inc, value=other).value
    assert kind_of(inc, value=copy.deepcopy(one)).value == kind_of(inc, value=one).value


@pytest.mark.parametrize(
    "other", [0, [0.5] * 3, torch.tensor(0.5), torch.full((3,), 0.5, dtype=torch.float64), np.float32(0.5)], ids=repr
)
def test_the_same_colour_is_the_same_fill_however_it_is_written(inc: Any, other: Any) -> None:
    assert (kind_of(inc, value=other).value == kind_of(inc, value=0.5).value) == (other is not 0)  # noqa: F632
    assert kind_of(inc, value=Pixels(0.25, Step(2))).value == kind_of(inc, value=0.5).value


# ---------------------------------------------------------------- scores

WEIGHT = 1.0
TABLE = torch.zeros(2, 2000)


def of_a_global(out: Tensor) -> Tensor:
    return out * WEIGHT


def of_a_helper(out: Tensor) -> Tensor:
    return of_a_global(out) + math.pi


def with_keyword(out: Tensor, *, k: int = 1) -> Tensor:
    return out * k


def of_a_table(out: Tensor) -> Tensor:
    return out + TABLE.sum()


def around(k: float) -> Any:
    def score(out: Tensor) -> Tensor:
        return torch.stack([(lambda x: x * k)(row) for row in out])

    return score


def test_scores_are_told_apart_by_code_and_by_all_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [
        lambda out: out[:, 0],
        lambda out: out[:, 1],
        lambda out: [x + 1 for x in out],
        lambda out: (x + 1 for x in out),
    ]
    texts = [score_text(score) for score in plain]
    texts += [
        score_text(partial(of_a_global)),
        score_text(partial(with_keyword, k=2)),
        score_text(partial(with_keyword)),
    ]
    texts += [score_text(around(k)) for k in (1, 2, 1.0)]
    texts += [score_text(nn.Softmax(0)), score_text(nn.Softmax(1)), score_text(Step(1)), score_text(Step(2))]
    texts += [
        "logit",
        score_text(of_a_helper),
        score_text(of_a_global),
        score_text(of_a_table),
        score_text(with_keyword),
    ]
    assert len(set(texts)) == len(texts)
    monkeypatch.setitem(globals(), "WEIGHT", -50.0)
    monkeypatch.setitem(globals(), "TABLE", TABLE.clone().index_fill_(1, torch.arange(900, 1100), 1.0))
    monkeypatch.setattr(with_keyword, "__kwdefaults__", {"k": -3})
    texts += [score_text(score) for score in (of_a_helper, of_a_global, of_a_table, with_keyword)]
    assert len(set(texts)) == len(texts)
    assert score_text(around(2)) in texts
    assert score_text(copy.deepcopy(nn.Softmax(1))) in texts


def test_collections_that_repeat_a_value_are_told_apart() -> None:
    texts = {score_text(lambda out, w=w: out * w[0]) for w in ([1, 1], [1], [1, 1, 1], [[1], 1], [1, 2, 1], [1, 2, 2])}
    assert len(texts) == 6


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file, pytest.raises(InputError, match=r"reads, a _io\.TextIOWrapper, which"):
        score_text(lambda out: out * file.fileno())


@pytest.mark.parametrize(
    ("target", "text"),
    [(None, "predicted"), (1, "1"), ([1], "1"), (torch.tensor(1), "1"), (np.int64(1), "1"), ([0, 2], "0, 2")],
)
def test_targets(target: Any, text: str) -> None:
    assert target_text(target) == text
