"""`kcompile.occlusion` against brute force: every score of every map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from tests.support.equivalence import incremental, noise
from tests.support.networks import Residual, conv_bn_relu, pooled_head, ready

SHAPE, PATCH = (3, 25, 22), (6, 5)


def network(classes: int = 4, *after: nn.Module) -> nn.Module:
    body = nn.Sequential(conv_bn_relu(3, 6), Residual(6, 8))
    return ready(nn.Sequential(pooled_head(body, 8, classes), *after), SHAPE, torch.float32)


def brute_force(
    model: nn.Module, image: Tensor, positions: Any, patch: Tensor, score: Callable[[Any], Tensor]
) -> np.ndarray[Any, Any]:
    """Scores [rows, cols, K] from one full inference per position."""
    rows, cols, _ = positions.shape
    images = image.repeat(rows * cols, 1, 1, 1)
    for one, (row, col) in zip(images, positions.reshape(-1, 2).tolist(), strict=True):
        one[:, row : row + patch.shape[1], col : col + patch.shape[2]] = patch
    with torch.no_grad():
        result = score(model(images))
    return result.reshape(rows, cols, -1).numpy()


def softmax(output: Any) -> Tensor:
    return torch.softmax(output, 1)


def assert_map(heat: kcompile.Heatmap, want: Any) -> None:
    scale, change = np.abs(want).max(), np.ptp(want, axis=(0, 1)).max()  # over the positions, class by class
    assert change > 1e-4 * scale, "void: the map is flat"
    assert heat.complete
    np.testing.assert_allclose(heat.all_scores, want, rtol=0, atol=min(1e-4 * scale, 0.1 * change))


@pytest.mark.parametrize("stride", [1, 3, 4, (2, 7), (30, 30)])
@pytest.mark.parametrize("patch", [PATCH, (1, 1), (3, 5), 4])
def test_every_position(patch: Any, stride: Any, seed: int) -> None:
    model, image = network(), noise(SHAPE)
    inc = incremental(model, SHAPE, PATCH)
    heat = kcompile.occlusion(inc, image, patch, stride=stride, value=2.0)
    height, width = (patch, patch) if isinstance(patch, int) else patch
    down, right = (stride, stride) if isinstance(stride, int) else stride
    rows, cols = (25 - height) // down + 1, (22 - width) // right + 1
    assert heat.scores.shape == (rows, cols)
    assert heat.all_scores.shape == (rows, cols, 4)
    assert heat.patch_shape == (height, width)
    assert heat.image_shape == SHAPE[1:]
    where = [[(r * down, c * right) for c in range(cols)] for r in range(rows)]
    assert heat.positions.tolist() == np.array(where).tolist()
    want = brute_force(model, image, heat.positions, torch.full((3, height, width), 2.0), softmax)
    np.testing.assert_allclose(heat.all_scores, want, rtol=0, atol=1e-4)
    if want.size > 40:
        assert_map(heat, want)


def test_a_plain_model_and_an_image_with_batch(seed: int) -> None:
    model, image = network(), noise(SHAPE)
    heat = kcompile.occlusion(model, image[None], PATCH, stride=3, value=1.0)
    assert_map(heat, brute_force(model, image, heat.positions, torch.ones(3, *PATCH), softmax))
    large = noise((3, 40, 22))
    assert kcompile.occlusion(model, large).patch_shape == (16, 16)


def test_region_of_interest(seed: int) -> None:
    model, image = network(), noise(SHAPE)
    inc = incremental(model, SHAPE, PATCH)
    heat = kcompile.occlusion(inc, image, stride=2, roi=(3, 4, 20, 21), value=2.0)
    assert heat.positions[0, 0].tolist() == [3, 4]
    assert heat.positions[-1, -1].tolist() == [13, 16], "patches stay inside"
    assert heat.scores.shape == (6, 7)
    assert_map(heat, brute_force(model, image, heat.positions, torch.full((3, *PATCH), 2.0), softmax))
    whole = kcompile.occlusion(inc, image, stride=1, value=2.0)
    np.testing.assert_allclose(heat.scores, whole.scores[3:14:2, 4:17:2], rtol=0, atol=1e-5)
    exact = kcompile.occlusion(inc, image, roi=(19, 17, 25, 22))
    assert exact.positions.tolist() == [[[19, 17]]]


def test_values(seed: int) -> None:
    model, image = network(), noise(SHAPE) + torch.tensor([1.0, -1.0, 3.0])[:, None, None]
    inc = incremental(model, SHAPE, PATCH)
    colour, picture = torch.tensor([2.0, -1.0, 4.0]), noise((3, *PATCH), size=3.0)
    mean = image.mean((1, 2))[:, None, None].expand(3, *PATCH)
    cases: list[tuple[Any, Tensor]] = [
        (0.0, torch.zeros(3, *PATCH)),
        (-3, torch.full((3, *PATCH), -3.0)),
        ((2.0, -1.0, 4.0), colour[:, None, None].expand(3, *PATCH)),
        (colour, colour[:, None, None].expand(3, *PATCH)),
        (colour.numpy(), colour[:, None, None].expand(3, *PATCH)),
        (picture, picture),
        ("mean", mean),
    ]
    for value, patch in cases:
        heat = kcompile.occlusion(inc, image, stride=4, value=value)
        assert_map(heat, brute_force(model, image, heat.positions, patch, softmax))


SCORES: dict[str, tuple[tuple[nn.Module, ...], int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "logits": ((), 4, softmax, lambda y: y),
    "softmax": ((nn.Softmax(1),), 4, lambda y: y, torch.log),
    "softmax, reshaped": ((nn.Softmax(1), nn.Flatten()), 4, lambda y: y, torch.log),
    "log softmax": ((nn.LogSoftmax(1),), 4, torch.exp, lambda y: y),
    "one logit": ((), 1, torch.sigmoid, lambda y: y),
    "one logit, without class axis": ((nn.Flatten(0),), 1, torch.sigmoid, lambda y: y),
    "sigmoid": ((nn.Sigmoid(),), 1, lambda y: y, torch.logit),
    "several sigmoids": ((nn.Sigmoid(),), 4, lambda y: y, torch.logit),
}


@pytest.mark.parametrize(("after", "classes", "probability", "logit"), SCORES.values(), ids=SCORES)
def test_scores(after: Any, classes: int, probability: Any, logit: Any, seed: int) -> None:
    """A softmax or sigmoid at the model's end is not applied twice."""
    model, image = network(classes, *after), noise(SHAPE)
    inc = incremental(model, SHAPE, PATCH)
    for score, function in (("probability", probability), ("logit", logit), (lambda y: 3 * y, lambda y: 3 * y)):
        heat = kcompile.occlusion(inc, image, score=score, value=2.0)
        assert_map(heat, brute_force(model, image, heat.positions, torch.full((3, *PATCH), 2.0), function))
        with torch.no_grad():
            base = function(model(image[None])).reshape(-1)
        torch.testing.assert_close(torch.from_numpy(heat.base_scores), base, rtol=1e-4, atol=1e-5)
        assert heat.target == int(base.argmax())
        assert heat.base_score == pytest.approx(float(base.max()), rel=1e-4, abs=1e-5)
        assert heat.score == (score if isinstance(score, str) else "<lambda>")


def test_a_score_function_of_one_number_per_row(seed: int) -> None:
    model, image = network(), noise(SHAPE)
    heat = kcompile.occlusion(incremental(model, SHAPE, PATCH), image, score=lambda y: y[:, 1] - y[:, 2], value=2.0)
    assert heat.all_scores.shape == (5, 5, 1)
    assert_map(
        heat,
        brute_force(model, image, heat.positions, torch.full((3, *PATCH), 2.0), lambda y: (y[:, 1] - y[:, 2])[:, None]),
    )


class Both(NamedTuple):
    first: Tensor
    second: Tensor


class Structured(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two, self.make = network(4), network(3, nn.Softmax(1)), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.one(x), self.two(x))


@pytest.mark.parametrize(
    ("make", "one", "two"),
    [
        (lambda a, b: {"first": a, "second": b, "none": None}, "first", "second"),
        (lambda a, b: (a, b), 0, 1),
        (lambda a, b: [a, b], 0, -1),
        (Both, "first", "second"),
        (Both, 0, 1),
    ],
    ids=["dict", "tuple", "list", "attribute", "named tuple by index"],
)
def test_structured_outputs(make: Any, one: Any, two: Any, seed: int) -> None:
    model, image = Structured(make).eval(), noise(SHAPE)
    inc = incremental(model, SHAPE, PATCH)
    fill = torch.full((3, *PATCH), 2.0)
    first = kcompile.occlusion(inc, image, value=2.0, output=one)
    assert_map(first, brute_force(model.one, image, first.positions, fill, softmax))
    second = kcompile.occlusion(inc, image, value=2.0, output=two)
    assert_map(second, brute_force(model.two, image, second.positions, fill, lambda y: y))
    with pytest.raises(kcompile.InputError, match="choose one with output="):
        kcompile.occlusion(inc, image)
    with pytest.raises(kcompile.InputError, match="is not in the model's output"):
        kcompile.occlusion(inc, image, output="third")


def test_the_only_output_needs_no_choice(seed: int) -> None:
    """Not even to see that it ends with a softmax."""
    model, image = Structured(lambda a, b: {"aux": None, "out": b, "scale": 3.0}).eval(), noise(SHAPE)
    heat = kcompile.occlusion(incremental(model, SHAPE, PATCH), image, value=2.0)
    assert_map(heat, brute_force(model.two, image, heat.positions, torch.full((3, *PATCH), 2.0), lambda y: y))


def test_targets(seed: int) -> None:
    model, image = network(), noise(SHAPE)
    inc = incremental(model, SHAPE, PATCH)
    for target in (0, 3, np.int64(2)):
        heat = kcompile.occlusion(inc, image, target=target)
        assert heat.target == int(target)
        assert np.array_equal(heat.scores, heat.all_scores[..., target])
    for target in (-1, 4, 1.5):
        with pytest.raises(kcompile.InputError, match=rf"target is {target}; the model has classes 0 … 3"):
            kcompile.occlusion(inc, image, target=target)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupt_returns_the_partial_map(after: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after some groups of queries: the others' scores are NaN."""
    from kcompile.runtime import executor

    monkeypatch.setattr(executor, "TAIL_BYTES", (1, 1))
    model, image = network(), noise(SHAPE)
    inc = incremental(model, SHAPE, PATCH)
    whole = kcompile.occlusion(inc, image, stride=2)
    stream, done = inc.stream_patches, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        for number, group in enumerate(stream(*args, **kwargs)):
            if number == after:
                raise KeyboardInterrupt
            done.extend(group[0].tolist())
            yield group

    monkeypatch.setattr(inc, "stream_patches", interrupted)
    heat = kcompile.occlusion(inc, image, stride=2)
    known = ~np.isnan(heat.scores.reshape(-1))
    assert sorted(done) == np.flatnonzero(known).tolist()
    assert not heat.complete
    assert not known.all()
    np.testing.assert_allclose(heat.scores[~np.isnan(heat.scores)], whole.scores[~np.isnan(heat.scores)], atol=1e-6)
    assert heat.positions.shape == whole.positions.shape


def test_progress_is_shown_on_demand(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    inc = incremental(network(), SHAPE, PATCH)
    kcompile.occlusion(inc, noise(SHAPE))
    assert capsys.readouterr().err == ""
    kcompile.occlusion(inc, noise(SHAPE), progress=True)
    shown = capsys.readouterr().err
    assert "estimate" in shown
    assert "25/25" in shown
