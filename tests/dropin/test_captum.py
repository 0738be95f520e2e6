"""Captum's own Occlusion and FeatureAblation on top of a tracking module: the plain model's attributions."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from captum.attr import FeatureAblation, NoiseTunnel, Occlusion
from captum.testing.attr.helpers.test_config import config
from torch import Tensor, nn

import kcompile
from tests.support.equivalence import PATCH, SHAPE, incremental, noise
from tests.support.networks import ready
from tests.support.spying import Rows, counted_rows

WINDOW = (3, *PATCH)


def both(explainer: Any, inc: kcompile.IncrementalModule, inputs: Any, **options: Any) -> tuple[Any, Any, Rows]:
    """Attributions with the module beneath and with the plain model, and how the module's rows ran."""
    inc.track_base()
    with counted_rows(inc.model) as rows:
        got = explainer(inc).attribute(inputs, **options)
    return got, explainer(inc.model).attribute(inputs, **options), rows


def windows(window: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return math.prod(math.ceil((size - w) / stride) + 1 for size, w, stride in zip(SHAPE, window, strides, strict=True))


def assert_same(got: Tensor, want: Tensor) -> None:
    scale = float(want.abs().max())
    assert scale > 1e-3, "void: the network does not react"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("per_eval", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 3])
def test_occlusion(inc: kcompile.IncrementalModule, count: int, per_eval: int) -> None:
    """Windows at stride (4, 4), the last ones cropped, the last call ragged; every window of each image incremental."""
    options = {"sliding_window_shapes": WINDOW, "strides": (3, 4, 4), "target": 1, "perturbations_per_eval": per_eval}
    got, want, rows = both(Occlusion, inc, noise((count, *SHAPE)), **options)
    assert_same(got, want)
    assert rows == Rows(incremental=count * windows(WINDOW, (3, 4, 4)))


@pytest.mark.parametrize("window", [(1, 6, 5), (2, 4, 5), (3, 1, 1), (2, 6, 1)])
def test_windows_over_some_channels(inc: kcompile.IncrementalModule, window: tuple[int, ...]) -> None:
    strides = (1, min(window[1], 5), min(window[2], 4))
    got, want, rows = both(
        Occlusion,
        inc,
        noise((1, *SHAPE)),
        sliding_window_shapes=window,
        strides=strides,
        target=2,
        perturbations_per_eval=13,
    )
    assert_same(got, want)
    assert rows == Rows(incremental=windows(window, strides))


@pytest.mark.parametrize("target", [0, (3,), torch.tensor(2), torch.tensor([1, 4]), [0, 3], [(2,), (4,)], None])
def test_targets_and_baselines(inc: kcompile.IncrementalModule, target: Any) -> None:
    options = {"sliding_window_shapes": WINDOW, "strides": (3, 6, 5), "target": target, "perturbations_per_eval": 4}
    inputs = noise((2, *SHAPE))
    for baseline in (1.5, noise((2, *SHAPE)), noise((1, *SHAPE))):
        got, want, rows = both(Occlusion, inc, inputs, baselines=baseline, **options)
        assert_same(got, want)
        assert rows.incremental == 2 * windows(WINDOW, (3, 6, 5))


def test_windows_larger_than_the_patch_run_in_full(inc: kcompile.IncrementalModule) -> None:
    got, want, rows = both(
        Occlusion, inc, noise((1, *SHAPE)), sliding_window_shapes=(3, 9, 9), strides=(3, 9, 9), target=1
    )
    assert_same(got, want)
    assert rows.incremental <= 5  # cropped ones fit


@pytest.mark.parametrize("per_eval", [1, 7, 64])
def test_feature_ablation(inc: kcompile.IncrementalModule, per_eval: int) -> None:
    """Cells of a grid as features, one of them in two far places (it runs in full)."""
    rows, cols = torch.arange(SHAPE[1]) // PATCH[0], torch.arange(SHAPE[2]) // PATCH[1]
    mask = (rows[:, None] * 8 + cols).expand(1, *SHAPE).clone()
    mask[mask == 39] = 0
    options = {"feature_mask": mask, "target": 3, "perturbations_per_eval": per_eval}
    got, want, counted = both(FeatureAblation, inc, noise((2, *SHAPE)), **options)
    assert_same(got, want)
    assert counted == Rows(incremental=2 * (len(mask.unique()) - 1), full=0 if per_eval == 1 else 2)


@pytest.mark.parametrize("examples", [False, True], ids=["compiled for one", "compiled for both"])
def test_a_model_of_two_inputs_falls_back(examples: bool) -> None:
    """Called with two tensors, the module is the original model."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            total = self.one(x) if y is None else self.one(x) + self.two(y)
            return total.relu().mean((2, 3))

    model, inputs = ready(Two(), SHAPE, torch.float32), (noise((2, *SHAPE)), noise((2, *SHAPE)))
    if examples:
        inc = kcompile.incrementalize(model, patch_shape=PATCH, example_inputs=inputs)
        inc.materialize(*inputs)
    else:
        inc = incremental(model, SHAPE, PATCH)
    options = {"sliding_window_shapes": (WINDOW, WINDOW), "strides": ((3, 6, 5), (3, 6, 5)), "target": 1}
    got, want, rows = both(Occlusion, inc, inputs, perturbations_per_eval=7, **options)
    for mine, theirs in zip(got, want, strict=True):
        assert_same(mine, theirs)
    assert rows.incremental == 0
    assert rows.full == 2 * (2 * windows(WINDOW, (3, 6, 5)) + 1)


ENTRIES = [
    (entry, algorithm)
    for entry in config
    for algorithm in entry["algorithms"]
    if algorithm in (Occlusion, FeatureAblation)
]
# What can't be compiled, and why; the others are images of (C, L) or (C, H, W).
REFUSED = {
    "BasicModel_MultiLayer": "rows of 3 numbers: no spatial axes",
    "BasicModel_MultiLayer_MultiInput": "several inputs, rows of 3 numbers",
    "ReLULinearModel": "several inputs, rows of 3 numbers",
}


@pytest.mark.parametrize(("entry", "algorithm"), ENTRIES, ids=[f"{e['name']}-{a.__name__}" for e, a in ENTRIES])
def test_captums_own_configurations(entry: dict[str, Any], algorithm: Any) -> None:
    """Every entry of Captum's list for the two algorithms, as its tests of targets and wrapped models run them."""
    model, options = copy.deepcopy(entry["model"]).eval(), dict(entry["attribute_args"])
    inputs, name = options.pop("inputs"), type(model).__name__

    def wrapped(forward: Any) -> Any:
        return NoiseTunnel(algorithm(forward)) if entry.get("noise_tunnel") else algorithm(forward)

    if name in REFUSED:
        shape = tuple((inputs[0] if isinstance(inputs, tuple) else inputs).shape)
        with pytest.raises(kcompile.InputError, match="input_shape"):
            kcompile.incrementalize(model, shape, 1)
        return
    patch = tuple(options.get("sliding_window_shapes", (1, 1, 1)))[1:]
    got, want, rows = both(wrapped, incremental(model, tuple(inputs.shape), patch), inputs, **options)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)  # its weights are all ones: it hardly reacts
    assert rows.incremental > 0
    assert rows.full == 0
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    got, want, _ = both(wrapped, incremental(model, tuple(inputs.shape), patch), noise(inputs.shape), **options)
    assert_same(got, want)


def test_there_are_configurations() -> None:
    """Captum could rename its list: then the test above would test nothing."""
    names = {type(entry["model"]).__name__ for entry, _ in ENTRIES}
    assert names - set(REFUSED) == {"BasicModel_ConvNet"}
    assert len(ENTRIES) >= 20
