"""Bad images, patches, positions and options: each error says what is allowed (docs/design.md, section 8)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kcompile
from tests.support.equivalence import PATCH, SHAPE, compiled, network, noise, refused
from tests.support.networks import conv, ready


@pytest.fixture(scope="module")
def inc() -> kcompile.IncrementalModule:
    """A small compiled module with a base image."""
    module = compiled()
    module.materialize(noise(SHAPE))
    return module


# ------------------------------------------------------------------ images


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.zeros(30, 37, 3),
            "(or a batch [B, 3, 30, 37]): put the channels first, image.movedim(-1, -3)",
        ),
        (
            torch.zeros(30, 37),
            "has shape (30, 37); this module was compiled for (3, 30, 37) (or a batch [B, 3, 30, 37])",
        ),
        (torch.zeros(1, 1, *SHAPE), "has shape (1, 1, 3, 30, 37)"),
        (torch.zeros(1, 30, 37), "has shape (1, 30, 37)"),
        (torch.zeros(4, 30, 37), "has shape (4, 30, 37)"),
        (torch.zeros(2, 3, 30, 36), "has shape (2, 3, 30, 36)"),
        (torch.zeros(3, 37, 30), "has shape (3, 37, 30)"),
        (torch.zeros(0, *SHAPE), "has shape (0, 3, 30, 37)"),
        (torch.zeros(*SHAPE).numpy(), "must be a torch.Tensor, got ndarray: torch.from_numpy(image) makes one"),
        (
            torch.zeros(*SHAPE, dtype=torch.uint8),
            "has type torch.uint8; the model computes in torch.float32 (scale pixels",
        ),
        (torch.zeros(*SHAPE, dtype=torch.float64), "has type torch.float64; the model computes in torch.float32"),
        (torch.zeros(*SHAPE, dtype=torch.int64), "has type torch.int64"),
        (torch.zeros(*SHAPE, dtype=torch.bool), "has type torch.bool"),
        (torch.zeros(*SHAPE, dtype=torch.complex64), "has type torch.complex64"),
        (torch.zeros(*SHAPE, dtype=torch.float16), "has type torch.float16; the model computes in torch.float32"),
        (torch.zeros(*SHAPE, device="meta"), "is on meta; the module is on cpu"),
        (None, "must be a torch.Tensor, got NoneType"),
        ("scan.png", "must be a torch.Tensor, got str"),
    ],
)
def test_images(inc: kcompile.IncrementalModule, image: Any, message: str) -> None:
    with refused(kcompile.InputError, message):
        inc.materialize(image)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_in_the_image_warn(value: float) -> None:
    module, image = compiled(), noise(SHAPE)
    image[1, 2, 3] = value
    with pytest.warns(UserWarning, match="the image holds NaN or infinite values"):
        module.materialize(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.materialize(noise(SHAPE))


# ------------------------------------------------------------------ patches and positions


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (torch.zeros(2), "one value per channel needs 3 values, got 2"),
        (torch.zeros(1, 6, 5), "a patch has all 3 channels, also where channels= names those that it changes"),
        (torch.zeros(6, 5), "have shape (6, 5); allowed are a scalar, [3], [3, h, w] and [N, 3, h, w]"),
        (torch.zeros(1, 6, 5), "have shape (1, 6, 5)"),
        (torch.zeros(2, 4, 6, 5), "have shape (2, 4, 6, 5)"),
        (torch.zeros(1, 2, 3, 6, 5), "have shape (1, 2, 3, 6, 5)"),
        (torch.zeros(3, 7, 5), "a 7x5 patch does not fit: this module was compiled for up to 6x5"),
        (torch.zeros(2, 3, 5, 6), "a 5x6 patch does not fit"),
        (torch.zeros(3, 0, 5), "a 0x5 patch does not fit"),
        (torch.zeros(3, 3, 6, 5), "3 patches for 2 positions"),
        (torch.zeros(3, 6, 5, dtype=torch.uint8), "the patch has type torch.uint8"),
        (torch.zeros(3, 6, 5, dtype=torch.float64), "the patch has type torch.float64"),
        (torch.zeros(3, 6, 5, device="meta"), "the patch is on meta; the module is on cpu"),
    ],
)
def test_patches(inc: kcompile.IncrementalModule, patches: Any, message: str) -> None:
    with refused(kcompile.InputError, message):
        inc.forward_patches(patches, [[0, 0], [1, 1]])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[0.0, 1.0]], "positions must be integers (row, col), got float64"),
        (torch.zeros(1, 2), "positions must be integers (row, col), got float32"),
        (torch.ones(1, 2, dtype=torch.bool), "got bool"),
        (None, "got object"),
        (5, "positions must have shape [N, 2], got ()"),
        ([3, 4], "positions must have shape [N, 2], got (2,)"),
        ([[1, 2, 3]], "positions must have shape [N, 2], got (1, 3)"),
        (np.zeros((1, 1, 2), dtype=int), "got (1, 1, 2)"),
        ([[1, 2], [3]], "positions must have shape [N, 2]"),
        ([[0, 0], [-6, 3]], "position (-6, 3) (index 1) puts a 6x5 patch wholly outside the 30x37 image"),
        ([[30, 0]], "position (30, 0) (index 0)"),
        ([[0, -5]], "allowed are (-5, -4) … (29, 36)"),
        ([[0, 37]], "position (0, 37)"),
    ],
)
def test_positions(inc: kcompile.IncrementalModule, positions: Any, message: str) -> None:
    with refused(kcompile.PositionError, message):
        inc.forward_patches(0.0, positions)


def test_what_is_outside_depends_on_the_patch_s_own_size(inc: kcompile.IncrementalModule) -> None:
    inc.forward_patches(0.0, [[-5, -4], [29, 36]])
    with refused(kcompile.PositionError, "position (-5, -4) (index 0) puts a 2x2 patch", "allowed are (-1, -1)"):
        inc.forward_patches(torch.zeros(3, 2, 2), [[-5, -4]])


@pytest.mark.parametrize(
    "empty", [[], np.zeros((0, 2)), torch.zeros(0, 2, dtype=torch.int64), np.zeros((0, 2), dtype=np.int32)]
)
def test_no_positions(inc: kcompile.IncrementalModule, empty: Any) -> None:
    assert inc.forward_patches(0.0, empty).shape == (0, 5)
    assert inc.forward_patches(torch.zeros(0, 3, 2, 2), empty, base_index=[]).shape == (0, 5)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0], "base_index must hold 2 integers"),
        ([0.0, 0.0], "base_index must hold 2 integers, got float64"),
        ([0, 1], "base_index must lie in 0…0, got 0…1"),
        ([-1, 0], "base_index must lie in 0…0, got -1…0"),
    ],
)
def test_base_indices(inc: kcompile.IncrementalModule, index: Any, message: str) -> None:
    with refused(kcompile.InputError, message):
        inc.forward_patches(0.0, [[0, 0], [1, 1]], base_index=index)


def test_no_base() -> None:
    with refused(kcompile.NotMaterializedError, "call materialize(image) before forward_patches"):
        compiled().forward_patches(0.0, [[0, 0]])


# ------------------------------------------------------------------ occlusion


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_shape": 7}, "patch_shape is (7, 7); this module was compiled for 1 … (6, 5)"),
        ({"patch_shape": (0, 2)}, "patch_shape is (0, 2)"),
        ({"stride": 0}, "stride is 0; allowed are integers of at least 1"),
        ({"stride": (2, -1)}, "stride is (2, -1)"),
        ({"stride": 1.5}, "stride is 1.5"),
        ({"stride": (1.5, 2)}, "stride is (1.5, 2)"),
        ({"stride": (1, 2, 3)}, "stride is (1, 2, 3)"),
        ({"roi": (0, 0, 31, 37)}, "roi is (0, 0, 31, 37); allowed is (top, left, bottom, right) inside (0, 0, 30, 37)"),
        ({"roi": (-1, 0, 30, 37)}, "roi is (-1, 0, 30, 37)"),
        ({"roi": (9, 0, 9, 37)}, "roi is (9, 0, 9, 37)"),
        ({"roi": (0, 0, 30)}, "roi is (0, 0, 30)"),
        ({"roi": (0, 0, 5, 37)}, "roi is (0, 0, 5, 37): smaller than the 6x5 patch"),
        ({"value": "blurred"}, "value is 'blurred'; allowed are a number, one per channel"),
        ({"value": [1.0, 2.0]}, "value has 2 numbers; the image has 3 channels"),
        (
            {"value": torch.zeros(3, 5, 5)},
            "value has shape (3, 5, 5); allowed are a number, [3], (3, 6, 5) for the patch",
        ),
        ({"value": torch.zeros(3, 5)}, "value has shape (3, 5)"),
        ({"score": "chance"}, 'score is \'chance\'; allowed are "probability", "logit" or a function'),
        ({"score": lambda y: 3}, "the score function must return a tensor [N] or [N, K]"),
        ({"score": lambda y: y.sum()}, "the score function must return a tensor [N] or [N, K]"),
        ({"score": lambda y: y[:1]}, "the score function returned 1 rows for the outputs of "),
        ({"score": lambda y: y.mean(0)}, "the score function returned 5 rows for the outputs of 1 images"),
        ({"score": lambda y: y[:, :, None]}, "the score function must return a tensor [N] or [N, K]"),
        ({"target": 5}, "target is 5; the model has classes 0 … 4"),
        ({"output": "aux"}, "output='aux' is not in the model's output"),
    ],
)
def test_occlusion(inc: kcompile.IncrementalModule, options: dict[str, Any], message: str) -> None:
    with refused(kcompile.InputError, message):
        kcompile.occlusion(inc, noise(SHAPE), **options)


@pytest.mark.parametrize(
    "image",
    [noise((2, 1, *SHAPE)), noise(SHAPE)[0], noise((4, 30, 37)), noise(SHAPE).numpy(), noise(SHAPE).byte(), None],
    ids=["five axes", "no channels", "four channels", "an array", "bytes", "None"],
)
@pytest.mark.parametrize("value", [0.0, "mean"])
def test_occlusion_of_other_images(inc: kcompile.IncrementalModule, image: Any, value: Any) -> None:
    with pytest.raises(kcompile.InputError, match="the image"):
        kcompile.occlusion(inc, image, value=value)
    if not isinstance(image, Tensor) or image.dim() != 3:
        with pytest.raises(kcompile.InputError, match=r"the image (must be a tensor|has shape)|the model does not run"):
            kcompile.occlusion(inc.model, image, PATCH)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("scan.png", "the image must be a torch.Tensor, got str"),
        (torch.zeros(30, 37, 3), "put the channels first, image.movedim(-1, -3)"),
        (torch.zeros(*SHAPE, dtype=torch.uint8), "has type torch.uint8; the model computes in torch.float32 (scale"),
        (torch.zeros(*SHAPE, device="meta"), "is on meta; the module is on cpu"),
    ],
)
def test_occlusion_names_what_is_wrong_with_an_image(inc: kcompile.IncrementalModule, image: Any, message: str) -> None:
    for value in (0.0, "patch-mean", "blur", "noise"):
        with refused(kcompile.InputError, message):
            kcompile.occlusion(inc, image, value=value)


def test_occlusion_of_models_that_cannot_be_explained() -> None:
    image = noise(SHAPE)
    with refused(kcompile.InputError, "the image must be a tensor [C, H, W], [B, C, H, W] or a list of such, got str"):
        kcompile.occlusion(network().eval(), "scan.png")
    with refused(kcompile.InputError, "[C, D, H, W], [B, C, D, H, W] or a list of such, got Tensor (3, 30, 37)"):
        kcompile.occlusion(network().eval(), [image], (4, 4, 4))
    with refused(
        kcompile.InputError, "the image is a dict: compile a model with several inputs first", "example_inputs"
    ):
        kcompile.occlusion(network().eval(), {"image": image})
    with refused(
        kcompile.InputError,
        "must be a torch.nn.Module",
        "got function",
    ):
        kcompile.occlusion(lambda x: x, image, PATCH)  # type: ignore[arg-type]
    with refused(kcompile.InputError, "the model does not run on images of shape (3, 30, 37)"):
        kcompile.occlusion(conv(4, 2).eval(), image, PATCH)
    with refused(kcompile.ModelModeError, "training mode", "call model.eval() first"):
        kcompile.occlusion(network().train(), image, PATCH)
    with refused(kcompile.InputError, "patch_shape is (31, 4); allowed are 1 … (30, 37) pixels"):
        kcompile.occlusion(network().eval(), image, (31, 4))
    inc = compiled()
    inc.train()
    with refused(kcompile.ModelModeError, "the module is in training mode", "call inc.eval()"):
        kcompile.occlusion(inc, image)
    inc.eval()
    with torch.no_grad():
        next(inc.model.parameters()).mul_(2.0)
    with refused(kcompile.StaleWeightsError, "the model's weights changed after compilation: call inc.refresh()"):
        kcompile.occlusion(inc, image)
    inc.refresh()
    assert kcompile.occlusion(inc, image).complete


def test_weights_that_change_while_a_map_is_made() -> None:
    """By the callback, say: the rest of the maps would be another model's."""
    inc = compiled()

    def change(progress: kcompile.Progress) -> None:
        with torch.no_grad():
            next(inc.model.parameters()).mul_(2.0)

    with refused(kcompile.StaleWeightsError, "call inc.refresh()"):
        kcompile.occlusion(inc, noise((2, *SHAPE)), callback=change)


def test_occlusion_of_a_map() -> None:
    module = kcompile.incrementalize(ready(conv(3, 4), SHAPE, torch.float32), SHAPE, PATCH)
    with refused(
        kcompile.InputError, "the output has shape (1, 4, 30, 37), not [N, classes]: pass a function as score="
    ):
        kcompile.occlusion(module, noise(SHAPE))
    heat = kcompile.occlusion(module, noise(SHAPE), score=lambda y: y.amax((2, 3)))
    assert heat.all_scores.shape[-1] == 4


def test_channels_last_pixels_for_a_plain_model_name_the_cure() -> None:
    model = torch.nn.Conv2d(3, 4, 3).eval()
    with pytest.raises(kcompile.InputError, match=r"put them first: image.movedim\(-1, -3\)"):
        kcompile.occlusion(model, torch.rand(64, 64, 3), 16)
