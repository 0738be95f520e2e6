"""MONAI's own OcclusionSensitivity on top of a materialised module: the plain model's maps.

MONAI ships no tests in its packages; the cases of shapes, boxes and modes are written after its documentation.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import DenseNet
from monai.visualize import OcclusionSensitivity
from torch import Tensor, nn

import kcompile
from tests.support.equivalence import SHAPE, incremental, noise
from tests.support.networks import ready
from tests.support.spying import Rows, counted_rows

# MONAI indexes tensors with lists, which torch announces to change.
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")

MODES = ["gaussian", "mean_patch", "mean_img", 0.0]


def both(
    inc: kcompile.IncrementalModule, image: Tensor, b_box: list[int] | None = None, **options: Any
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Rows]:
    """Map and most probable class with the module beneath and with the plain model, and how the module's rows ran."""
    options = {"verbose": False, **options}
    inc.materialize(image.as_subclass(Tensor))
    with counted_rows(inc.model) as rows:
        got = OcclusionSensitivity(inc, **options)(image, b_box)
    return got, OcclusionSensitivity(inc.model, **options)(image, b_box), rows


def assert_same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    (mine, classes), (theirs, their_classes) = ([part.as_subclass(Tensor) for part in pair] for pair in (got, want))
    spread = theirs.amax(tuple(range(2, theirs.dim()))) - theirs.amin(tuple(range(2, theirs.dim())))
    assert float(spread.max()) > 1e-3, "void: the network does not react"
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    close = theirs.topk(2, dim=1).values.diff(dim=1).abs() < 1e-4  # a tie may fall either way
    assert bool(((classes == their_classes) | close).all())


@pytest.mark.parametrize("wrapped", [Tensor, MetaTensor], ids=["Tensor", "MetaTensor"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(inc: kcompile.IncrementalModule, mode: Any, wrapped: Any) -> None:
    """The last batch is ragged; every row is incremental, unless it equals the base."""
    image = noise((1, *SHAPE))
    image = image if wrapped is Tensor else MetaTensor(image)
    got, want, rows = both(inc, image, mask_size=(6, 5), n_batch=8, overlap=0.5, mode=mode)
    assert_same(got, want)
    assert rows.full == 0
    assert rows.incremental == 9 * 17  # strides (3, 2); the last windows are shifted inside


def test_windows_that_change_nothing(inc: kcompile.IncrementalModule) -> None:
    """Mode 0.0 on a black border: such rows equal the base, and need no run at all."""
    image = noise((1, *SHAPE))
    image[..., :, 10:] = 0.0
    got, want, rows = both(inc, image, mask_size=5, n_batch=4, overlap=0.0, mode=0.0)
    assert_same(got, want)
    assert rows == Rows(incremental=6 * 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("b_box", "shape"),
    [
        ([2, 12, 3, 8], (10, 5)),
        ([1, 3, -1, -1], (2, 37)),
        ([0, 29, 30, 36], (29, 6)),
        ([5, 6, 5, 6], (1, 1)),
    ],
)
def test_bounding_boxes(inc: kcompile.IncrementalModule, mode: Any, b_box: list[int], shape: tuple[int, int]) -> None:
    image = noise((1, *SHAPE))
    got, want, rows = both(inc, image, b_box, mask_size=5, n_batch=7, overlap=0.6, mode=mode)
    assert got[0].shape == (1, 5, *shape)
    assert got[1].shape == (1, 1, *shape)
    torch.testing.assert_close(got[0].as_tensor(), want[0].as_tensor(), rtol=1e-4, atol=1e-5)
    assert rows.full == 0
    assert rows.incremental > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activate", [True, False])
def test_three_axes(mode: Any, activate: bool) -> None:
    layers = (nn.Conv3d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv3d(4, 6, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    inc = incremental(ready(nn.Sequential(*layers), (1, 12, 13, 14), torch.float32), (1, 12, 13, 14), (5, 4, 6))
    image = MetaTensor(noise((1, 1, 12, 13, 14)))
    box = [2, 9, -1, -1, 0, 12]
    for b_box in (None, box):
        got, want, rows = both(
            inc, image, b_box, mask_size=(5, 4, 6), n_batch=5, overlap=0.4, mode=mode, activate=activate
        )
        assert_same(got, want)
        assert rows.full == 0
        assert rows.incremental > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_monais_own_network(dims: int) -> None:
    """The network of MONAI's documentation, DenseNet, but smaller; 8x8 masks."""
    torch.manual_seed(4)
    size = 48 if dims == 2 else 32
    net = DenseNet(dims, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2))
    inc = incremental(ready(net, (1, *[size] * dims), torch.float32), (1, *[size] * dims), [8] * dims)
    image = noise((1, 1, *[size] * dims))
    box = [10, 24, -1, -1] + [8, 12] * (dims - 2)
    got, want, rows = both(inc, image, box, mask_size=8, n_batch=10, overlap=0.25)
    assert_same(got, want)
    assert rows.full == 0
    assert rows.incremental > 0


def test_invalid_boxes_and_batches_are_refused_alike(inc: kcompile.IncrementalModule) -> None:
    """MONAI's own errors come as without the module."""
    image = noise((1, *SHAPE))
    inc.materialize(image)
    for explainer in (OcclusionSensitivity(inc, 5, verbose=False), OcclusionSensitivity(inc.model, 5, verbose=False)):
        with pytest.raises(ValueError, match="batch size of 1"):
            explainer(image.repeat(2, 1, 1, 1))
        with pytest.raises(RuntimeError):
            explainer(image, [12, 2, 0, 3])
        explainer.mask_size = 40
        with pytest.raises(ValueError, match="bigger than mask"):
            explainer(image)
