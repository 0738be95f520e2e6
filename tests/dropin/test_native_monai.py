"""kcompile.monai.OcclusionSensitivity beside MONAI's: the same call, the same maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai import visualize
from monai.data import MetaTensor
from torch import Tensor, nn

import kcompile
from kcompile.monai import OcclusionSensitivity
from tests.support.equivalence import PATCH, SHAPE, network, noise, refused
from tests.support.networks import ready
from tests.support.spying import counted_rows

# MONAI indexes tensors with lists, which torch announces to change.
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


MODES = ["gaussian", "mean_patch", "mean_img", 0.0, -1.5]


def same(
    model: nn.Module, image: Tensor, b_box: Any = None, module: nn.Module | None = None, **options: Any
) -> OcclusionSensitivity:
    """Maps of both, of ``module`` (default: the model) and of the model, agree in value, shape and type."""
    options = {"verbose": False, **options}
    kwargs = options.pop("kwargs", {})
    ours = OcclusionSensitivity(module or model, **options)
    ours(image, b_box, **kwargs)  # compiles
    with counted_rows(model) as rows:
        got, classes = ours(image, b_box, **kwargs)
    want, most = visualize.OcclusionSensitivity(model, **options)(image, b_box, **kwargs)
    want, most = want.as_subclass(Tensor), most.as_subclass(Tensor)
    assert got.dtype == want.dtype
    assert classes.dtype == most.dtype
    assert float((want - want.mean(tuple(range(2, want.dim())), keepdim=True)).abs().max()) > 1e-4, "void: no reaction"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
    assert classes.shape == most.shape
    tie = want.topk(2, dim=1).values.diff(dim=1).abs() < 1e-4 if want.shape[1] > 1 else torch.zeros_like(most)
    assert bool(((classes == most) | tie.bool()).all())
    assert (rows.incremental > 0) == (ours.fallback is None)
    assert (rows.full > 0) == (ours.fallback is not None)
    return ours


@pytest.mark.parametrize("wrapped", [False, True], ids=["Tensor", "MetaTensor"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(inc: kcompile.IncrementalModule, mode: Any, wrapped: bool) -> None:
    image = noise((1, *SHAPE))
    ours = same(inc.model, MetaTensor(image) if wrapped else image, module=inc, mask_size=PATCH, overlap=0.5, mode=mode)
    assert ours.fallback is None


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6, 0.99, (0.2, 0.7)])
@pytest.mark.parametrize("mode", ["gaussian", 0.0])
def test_overlaps_and_the_default(inc: kcompile.IncrementalModule, overlap: Any, mode: Any) -> None:
    same(inc.model, noise((1, *SHAPE)), module=inc, mask_size=5, overlap=overlap, mode=mode)
    same(inc.model, noise((1, *SHAPE)), module=inc, mask_size=(4, 1), mode=mode)


BOXES = [
    ([2, 12, 3, 8], (10, 5)),
    ([1, 3, -1, -1], (2, 37)),
    ([0, 29, 30, 36], (29, 6)),
    ([5, 6, 5, 6], (1, 1)),
    ([25, 60, -1, 4], (5, 4)),
]


@pytest.mark.parametrize("mode", ["gaussian", "mean_img"])
@pytest.mark.parametrize(("b_box", "shape"), BOXES)
def test_boxes(inc: kcompile.IncrementalModule, mode: Any, b_box: list[int], shape: tuple[int, int]) -> None:
    """The mask shrinks where half of it on each side of the box is less."""
    for mask in (5, (6, 4), (1, 1)):
        if mask == (1, 1) and shape == (1, 1):
            continue  # one pixel, one mask: nothing to see
        options = {"mask_size": mask, "overlap": 0.6, "mode": mode, "verbose": False}
        ours = OcclusionSensitivity(inc, **options)
        image = noise((1, *SHAPE))
        got, classes = ours(image, b_box)
        want, _ = visualize.OcclusionSensitivity(inc.model, **options)(image, b_box)
        assert got.shape == (1, 5, *shape)
        assert classes.shape == (1, 1, *shape)
        torch.testing.assert_close(got, want.as_subclass(Tensor), rtol=1e-4, atol=2e-5)
        assert ours.fallback is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activate", [True, False, torch.tanh])
def test_three_axes_and_activations(mode: Any, activate: Any) -> None:
    """One channel: MONAI then takes a sigmoid."""
    layers = (nn.Conv3d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv3d(4, 6, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    model = ready(nn.Sequential(*layers), (1, 12, 13, 14), torch.float32)
    for b_box in (None, [2, 9, -1, -1, 0, 12]):
        image = noise((1, 1, 12, 13, 14)) * 3
        ours = same(model, image, b_box, mask_size=(5, 4, 6), overlap=0.4, mode=mode, activate=activate)
        assert ours.fallback is None


@pytest.mark.parametrize("mask", [PATCH, (9, 9)], ids=["incremental", "in full"])
def test_a_function_as_mode(inc: kcompile.IncrementalModule, mask: tuple[int, int]) -> None:
    """MONAI 1.6 takes one, but then fails; so functions are compared with the modes that they repeat."""

    def constant(image: Tensor, pixels: Tensor) -> Tensor:
        assert image.shape == (1, *SHAPE)
        assert pixels.shape == (1, 3, *mask)
        return torch.full_like(pixels, -1.5)

    image = noise((1, *SHAPE))
    for function, mode in ((constant, -1.5), (lambda _, pixels: pixels * pixels.mean(), "mean_patch")):
        options = {"mask_size": mask, "verbose": False}
        got, want = (OcclusionSensitivity(inc, mode=m, **options)(image)[0] for m in (function, mode))
        torch.testing.assert_close(got, want)


def test_float64_and_one_class() -> None:
    model = ready(nn.Sequential(network(), nn.Linear(5, 1)), SHAPE, torch.float64)
    same(model, noise((1, *SHAPE), torch.float64), mask_size=PATCH, activate=torch.sigmoid)


def test_a_model_in_training_mode_is_evaluated_and_goes_back() -> None:
    model = ready(network(), SHAPE, torch.float32)
    image, frozen = noise((1, *SHAPE)), next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    want, _ = visualize.OcclusionSensitivity(model, 5, verbose=False)(image)
    model.train()
    frozen.eval()
    ours = OcclusionSensitivity(model, 5, verbose=False)
    for _ in range(2):
        torch.testing.assert_close(ours(image)[0], want.as_subclass(Tensor), rtol=1e-4, atol=2e-5)
        assert ours.fallback is None
    assert model.training
    assert not frozen.training


class TestFullInference:
    """What can't be incremental runs in full, right, and says why."""

    @pytest.mark.parametrize("mode", MODES)
    def test_masks_larger_than_a_compiled_modules_patch(self, inc: kcompile.IncrementalModule, mode: Any) -> None:
        ours = same(inc.model, noise((1, *SHAPE)), module=inc, mask_size=9, overlap=0.3, mode=mode, n_batch=3)
        assert "larger than the compiled patch" in str(ours.fallback)

    def test_further_arguments(self) -> None:
        class Scaled(nn.Module):
            def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
                return x.square().mean((2, 3)) * factor

        ours = same(Scaled(), noise((1, *SHAPE)), mask_size=5, mode=0.0, activate=False, kwargs={"factor": 3.0})
        assert "further arguments" in str(ours.fallback)
        assert same(Scaled(), noise((1, *SHAPE)), mask_size=5, mode=0.0, activate=False).fallback is None

    def test_a_model_that_cannot_be_compiled(self) -> None:
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.mean((2, 3)) if float(x.sum()) > 1e9 else x.amax((2, 3)) + x.mean((2, 3))

        assert same(Branching(), noise((1, *SHAPE)), mask_size=5, mode=0.0, activate=False).fallback is not None


def test_progress_bar(inc: kcompile.IncrementalModule, capsys: pytest.CaptureFixture[str]) -> None:
    OcclusionSensitivity(inc, PATCH, overlap=0.5)(noise((1, *SHAPE)))
    assert "153/153" in capsys.readouterr().err
    OcclusionSensitivity(inc, PATCH, verbose=False)(noise((1, *SHAPE)))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "blur"}, ("mode is 'blur'", "mean_patch")),
        ({"n_batch": 0}, ("n_batch is 0",)),
        ({"nn_module": "resnet"}, ("nn_module", "str")),
    ],
)
def test_bad_settings(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(kcompile.InputError, *words):
        OcclusionSensitivity(**{"nn_module": nn.ReLU(), **options})


@pytest.mark.parametrize(
    ("options", "image", "b_box", "words"),
    [
        ({}, noise((2, *SHAPE)), None, ("batch size of 1", "2")),
        ({}, noise((1, 30)), None, ("[1, C, *sizes]", "(1, 30)")),
        ({}, "scan.png", None, ("[1, C, *sizes]", "str")),
        ({"mask_size": 31}, noise((1, *SHAPE)), None, ("(31, 31)", "(30, 37)")),
        ({"mask_size": (5, 5, 5)}, noise((1, *SHAPE)), None, ("mask_size is (5, 5, 5)",)),
        ({"mask_size": 0}, noise((1, *SHAPE)), None, ("mask_size is 0",)),
        ({"overlap": 1.0}, noise((1, *SHAPE)), None, ("overlap is 1.0",)),
        ({}, noise((1, *SHAPE)), [12, 2, 0, 3], ("b_box is [12, 2, 0, 3]", "empty")),
        ({}, noise((1, *SHAPE)), [30, 33, 0, 3], ("outside",)),
        ({}, noise((1, *SHAPE)), [1, 2, 3], ("b_box is [1, 2, 3]", "4 integers")),
        ({}, noise((1, *SHAPE)), [2, 9], ("b_box is [2, 9]", "4 integers, (min, max) per axis")),
        ({}, noise((1, *SHAPE)), [], ("b_box is []", "4 integers")),
        ({}, noise((1, *SHAPE)), 5, ("b_box is 5", "4 integers")),
        ({}, noise((1, *SHAPE)), "all", ("b_box is all", "4 integers")),
        ({}, noise((1, *SHAPE)), [0.5, 9, 0, 9], ("b_box is [0.5, 9, 0, 9]", "4 integers")),
        ({}, noise((1, *SHAPE)), [5, 5, 0, 3], ("b_box is [5, 5, 0, 3]", "empty")),
    ],
)
def test_bad_calls(
    inc: kcompile.IncrementalModule, options: dict[str, Any], image: Any, b_box: Any, words: tuple[str, ...]
) -> None:
    with refused(kcompile.InputError, *words):
        OcclusionSensitivity(inc, **{"mask_size": 5, "verbose": False, **options})(image, b_box)
