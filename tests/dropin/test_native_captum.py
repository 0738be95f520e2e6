"""kcompile.captum.Occlusion beside Captum's: the same call, the same attributions."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from captum import attr
from torch import Tensor, nn

import kcompile
from kcompile.captum import Occlusion
from tests.support.equivalence import PATCH, SHAPE, network, noise, refused
from tests.support.networks import ready
from tests.support.spying import counted_rows

WINDOW = (3, *PATCH)


def same(ours: Occlusion, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
    """Both explainers' attributions agree in value, shape and type; ours are returned."""
    got = ours.attribute(inputs, *args, **options)
    want = attr.Occlusion(model).attribute(inputs, *args, **options)
    assert isinstance(got, tuple) == isinstance(want, tuple)
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    for mine, theirs in pairs:
        scale = float(theirs.abs().max())
        assert scale > 1e-3, "void: the network does not react"
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * scale)
    return got


@pytest.fixture
def ours(inc: kcompile.IncrementalModule) -> Occlusion:
    return Occlusion(inc)


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize(
    ("window", "strides"),
    [
        (WINDOW, (3, 4, 4)),  # the last windows are cropped
        (WINDOW, 2),
        (WINDOW, None),
        ((1, 6, 5), (1, 6, 5)),  # channel by channel
        ((2, 4, 5), (1, 4, 4)),  # two of three channels, overlapping
        ((2, 4, 5), (2, 4, 4)),  # … the last one cropped to one channel
        ((3, 1, 1), (7, 1, 1)),  # a stride beyond what must be covered
    ],
)
def test_windows(ours: Occlusion, count: int, window: Any, strides: Any) -> None:
    if count > 1 and strides in (None, 2, (7, 1, 1)):
        count = 2
    model = ours.forward_func.model
    with counted_rows(model) as rows:
        ours.attribute(noise((count, *SHAPE)), window, strides, target=1)
    assert rows.full == 0
    assert rows.incremental >= 30 * count
    same(ours, model, noise((count, *SHAPE)), window, strides, target=1, perturbations_per_eval=16)
    assert ours.fallback is None


@pytest.mark.parametrize(
    "target",
    [0, (3,), (slice(1, 3),), torch.tensor(2), torch.tensor([3]), torch.tensor([1, 4]), [0, 3], [(2,), (4,)], None],
)
def test_targets(ours: Occlusion, target: Any) -> None:
    options = {"strides": (3, 6, 5), "target": target, "perturbations_per_eval": 4}
    same(ours, ours.forward_func.model, noise((2, *SHAPE)), WINDOW, **options)
    assert ours.fallback is None


@pytest.mark.parametrize("window", [WINDOW, (1, 6, 5)])
@pytest.mark.parametrize(
    "baseline", [1.5, 2, noise((2, *SHAPE)), noise((1, *SHAPE)), noise((1, 3, 1, 1)), noise((2, 1, 1, 1)), (0.5,)]
)
def test_baselines(ours: Occlusion, baseline: Any, window: tuple[int, ...]) -> None:
    options = {"strides": (window[0], 5, 5), "target": 1, "perturbations_per_eval": 8, "baselines": baseline}
    same(ours, ours.forward_func.model, noise((2, *SHAPE)), window, **options)
    assert ours.fallback is None


def test_tuples_of_one(ours: Occlusion) -> None:
    inputs, model = (noise((1, *SHAPE)),), ours.forward_func.model
    got = same(ours, model, inputs, (WINDOW,), ((3, 6, 5),), target=2)
    assert isinstance(got, tuple)
    same(ours, model, inputs, WINDOW, (4,), target=2, perturbations_per_eval=9)


def test_maps_as_outputs() -> None:
    """Targets of several indices, and a map's every cell as an output of its own."""
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3, stride=9), nn.ReLU()), SHAPE, torch.float32)
    ours, images = Occlusion(model), noise((2, *SHAPE))
    for target in ((1, 0, 2), [(0, 1, 2), (3, 1, 1)], (1,), None):
        options = {"strides": (3, 6, 5), "target": target, "perturbations_per_eval": 16}
        got, want = (e.attribute(images, WINDOW, **options) for e in (ours, attr.Occlusion(model)))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert ours.fallback is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plain_model_is_compiled_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(network(), SHAPE, dtype)
    ours, compiled = Occlusion(model), []
    inner = kcompile.engine.incrementalize  # type: ignore[attr-defined]

    def counting(*args: Any) -> Any:
        compiled.append(args[1:])
        return inner(*args)

    monkeypatch.setattr("kcompile.engine.incrementalize", counting)
    for _ in range(2):
        same(ours, model, noise((1, *SHAPE), dtype), WINDOW, (3, 6, 5), target=1, perturbations_per_eval=8)
    assert compiled == [((1, *SHAPE), PATCH)]
    same(ours, model, noise((1, 3, 24, 24), dtype), WINDOW, (3, 6, 5), target=1, perturbations_per_eval=8)
    assert len(compiled) == 2
    with torch.no_grad():
        next(model.parameters()).mul_(1.3)
    same(ours, model, noise((1, *SHAPE), dtype), WINDOW, (3, 6, 5), target=1, perturbations_per_eval=8)
    assert ours.fallback is None


@pytest.mark.parametrize("axes", [1, 3])
def test_other_axes(axes: int) -> None:
    shape, window = {1: ((2, 40), (2, 5)), 3: ((2, 8, 9, 7), (1, 3, 4, 2))}[axes]
    conv = nn.Conv1d if axes == 1 else nn.Conv3d
    pool = nn.AdaptiveAvgPool1d if axes == 1 else nn.AdaptiveAvgPool3d
    model = ready(nn.Sequential(conv(2, 5, 3), nn.ReLU(), pool(1), nn.Flatten()), shape, torch.float32)
    ours = Occlusion(model)
    same(ours, model, noise((2, *shape)), window, 2 if axes == 1 else (1, 2, 3, 2), target=3, perturbations_per_eval=8)
    assert ours.fallback is None


class TestFullInference:
    """What can't be incremental runs in full, right, and says why."""

    def test_several_inputs(self) -> None:
        def model(x: Tensor, y: Tensor) -> Tensor:
            return (x.square().sum((1, 2)) + y.sum(1).sin())[:, None]

        ours, inputs = Occlusion(model), (noise((3, 4, 5)), noise((3, 6)))
        options = {"baselines": (1.0, noise((1, 6))), "target": 0}
        for per_eval in (1, 4):
            same(ours, model, inputs, ((2, 3), (4,)), (2, (3,)), perturbations_per_eval=per_eval, **options)
        assert ours.fallback is not None
        assert "several inputs" in ours.fallback

    def test_additional_arguments(self) -> None:
        class Scaled(nn.Module):
            def forward(self, x: Tensor, factor: Tensor, power: int, nothing: None) -> Tensor:
                return (x.sum(1) * factor[:, None, None]).pow(power).flatten(1)

        model = Scaled()
        ours, extra = Occlusion(model), (torch.tensor([1.0, 2.0]), 2, None)
        for per_eval in (1, 5):
            options = {"additional_forward_args": extra, "target": 3, "perturbations_per_eval": per_eval}
            same(ours, model, noise((2, 3, 6, 7)), (3, 4, 4), 2, **options)
        assert "additional" in str(ours.fallback)

    def test_rows_of_numbers(self) -> None:
        model = nn.Linear(5, 3)
        ours = Occlusion(model)
        same(ours, model, noise((4, 5)), (2,), target=[0, 1, 2, 0], perturbations_per_eval=2)
        same(ours, model, noise((4, 5)), (2,), (2,), perturbations_per_eval=2)
        assert "shape" in str(ours.fallback)

    def test_scalars_per_row(self) -> None:
        def model(x: Tensor) -> Tensor:
            return x.sin()

        same(Occlusion(model), model, noise((3,)), ((),))

    @pytest.mark.parametrize("as_number", [False, True])
    def test_one_output_for_the_batch(self, as_number: bool) -> None:
        def model(x: Tensor) -> Any:
            total = x.square().sum()
            return float(total) if as_number else total

        ours = Occlusion(model)
        if as_number:
            x = torch.ones(2, 3, 5)
            torch.testing.assert_close(ours.attribute(x, (2, 2)), attr.Occlusion(model).attribute(x, (2, 2)))
        else:
            same(ours, model, noise((2, 3, 5)), (2, 2))
        with refused(kcompile.InputError, "perturbations_per_eval > 1"):
            ours.attribute(noise((2, 3, 5)), (2, 2), perturbations_per_eval=2)

    def test_windows_larger_than_a_compiled_modules_patch(self, ours: Occlusion) -> None:
        model = ours.forward_func.model
        same(ours, model, noise((1, *SHAPE)), (3, 9, 9), (3, 9, 9), target=1, perturbations_per_eval=3)
        assert "larger than the compiled patch" in str(ours.fallback)
        same(ours, model, noise((1, *SHAPE)), WINDOW, (3, 6, 5), target=1, perturbations_per_eval=3)
        assert ours.fallback is None

    def test_other_images_than_a_compiled_modules(self, ours: Occlusion) -> None:
        same(ours, ours.forward_func.model, noise((1, 3, 24, 24)), WINDOW, (3, 6, 5), target=1)
        assert "compiled for (3, 30, 37)" in str(ours.fallback)

    def test_stale_weights_of_a_compiled_module(self) -> None:
        inc = kcompile.incrementalize(ready(network(), SHAPE, torch.float32), SHAPE, PATCH)
        ours = Occlusion(inc)
        with torch.no_grad():
            next(inc.model.parameters()).mul_(1.3)
        same(ours, inc.model, noise((1, *SHAPE)), WINDOW, (3, 6, 5), target=1)
        assert "refresh" in str(ours.fallback)

    def test_a_model_that_cannot_be_compiled(self) -> None:
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))

        model = Branching()
        ours = Occlusion(model)
        same(ours, model, noise((1, *SHAPE)), WINDOW, (3, 6, 5), target=1)
        assert ours.fallback is not None

    def test_training_mode_until_it_ends(self) -> None:
        """Batch statistics make the rows depend on each other: as Captum, with what the model then returns."""
        model = ready(network(), SHAPE, torch.float32).train()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.0
        ours = Occlusion(model)
        same(ours, model, noise((2, *SHAPE)), WINDOW, (3, 6, 5), target=1)
        assert "training mode" in str(ours.fallback)
        model.eval()
        same(ours, model, noise((2, *SHAPE)), WINDOW, (3, 6, 5), target=1)
        assert ours.fallback is None

    def test_values_that_are_not_numbers_and_other_types(self, ours: Occlusion) -> None:
        image = noise((1, *SHAPE))
        image[0, 0, 0, 0] = float("nan")
        got = ours.attribute(image, WINDOW, (3, 6, 5), target=1)
        assert bool(got.isnan().any())
        assert "NaN" in str(ours.fallback)

    def test_integers(self) -> None:
        def model(x: Tensor) -> Tensor:
            return x.double().square().sum((1, 2))

        ours, x = Occlusion(model), torch.arange(40).reshape(2, 4, 5)
        for baseline in (1, 0.5):
            same(ours, model, x, (2, 2), baselines=baseline, perturbations_per_eval=3)


def test_progress_bar(ours: Occlusion, capsys: pytest.CaptureFixture[str]) -> None:
    ours.attribute(noise((2, *SHAPE)), WINDOW, (3, 6, 5), target=1, show_progress=True)
    assert "80/80" in capsys.readouterr().err
    ours.attribute(noise((2, *SHAPE)), WINDOW, (3, 6, 5), target=1)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"inputs": [1.0]}, ("inputs must be", "list")),
        ({"inputs": torch.zeros(0, *SHAPE)}, ("rows", "at least 1")),
        ({"sliding_window_shapes": 5}, ("sliding_window_shapes is 5",)),
        ({"sliding_window_shapes": (6, 5)}, ("(6, 5)", "(3, 30, 37)")),
        ({"sliding_window_shapes": (3, 31, 5)}, ("(3, 31, 5)", "(3, 30, 37)")),
        ({"strides": (3, 7, 5)}, ("strides are (3, 7, 5)", "(3, 6, 5)")),
        ({"strides": 0}, ("strides are (0, 0, 0)",)),
        ({"strides": (3, 6)}, ("strides",)),
        ({"baselines": "mean"}, ("baseline is a str",)),
        ({"baselines": torch.zeros(2, 3, 4, 4)}, ("baseline of shape (2, 3, 4, 4)",)),
        ({"baselines": (0, 0)}, ("tuple of 1",)),
        ({"target": 5}, ("target 5", "(1, 5)")),
        ({"target": (1, 1)}, ("target (1, 1)", "(1, 5)")),
        ({"target": [0, 1]}, ("2 entries for 1 images",)),
        ({"target": "dog"}, ("target 'dog'",)),
        ({"perturbations_per_eval": 0}, ("perturbations_per_eval is 0",)),
    ],
)
def test_bad_calls(ours: Occlusion, changed: dict[str, Any], words: tuple[str, ...]) -> None:
    call = {"inputs": noise((1, *SHAPE)), "sliding_window_shapes": WINDOW, "strides": (3, 6, 5), "target": 0, **changed}
    with refused(kcompile.InputError, *words):
        ours.attribute(**call)


def test_names_do_not_shadow_the_library() -> None:
    """kcompile.captum and captum are two modules, also from within the package; ours needs no import of its own."""
    assert kcompile.captum.Occlusion is Occlusion
    assert attr.Occlusion.__module__.startswith("captum.")
    code = (
        "import sys, kcompile; kcompile.captum, kcompile.monai; print('captum' in sys.modules, 'monai' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_patches_are_made_in_parts(ours: Occlusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory for patches, and more images than are made the base at once."""
    monkeypatch.setattr("kcompile.runtime.runners.CHUNK_BYTES", 5000)
    monkeypatch.setattr("kcompile.engine.IMAGES_AT_ONCE", 2)
    images = noise((3, *SHAPE))
    for window in (WINDOW, (2, 6, 5)):
        options = {"baselines": noise((3, *SHAPE)), "target": [1, 0, 4], "perturbations_per_eval": 8}
        same(ours, ours.forward_func.model, images, window, (1, 5, 5), **options)
        assert ours.fallback is None
