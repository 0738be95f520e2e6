"""Grids of positions: stride, overlap, roi, and maps of one axis and of three."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.grid import grid, steps
from tests.support.equivalence import PATCH, SHAPE, compiled, incremental, noise, refused
from tests.support.networks import ready


@pytest.mark.parametrize(
    ("overlap", "patch", "want"),
    [
        (0, (16, 16), (16, 16)),
        (0.5, (16, 8), (8, 4)),
        (0.75, (16, 8), (4, 2)),
        (0.9, (16, 16), (2, 2)),
        (0.999, (16, 3), (1, 1)),
        (0.3, (10, 5), (7, 4)),
        (0.5, (1,), (1,)),
        ((0.5, 0), (16, 16), (8, 16)),
        (np.float32(0.5), (4, 4, 4), (2, 2, 2)),
    ],
)
def test_an_overlap_is_a_stride(overlap: Any, patch: tuple[int, ...], want: tuple[int, ...]) -> None:
    assert steps(None, overlap, patch) == want
    assert all(isinstance(step, int) for step in steps(None, overlap, patch))


def test_occlusion_takes_an_overlap(seed: int) -> None:
    inc, image = compiled(), noise(SHAPE)
    assert (PATCH, SHAPE[1:]) == ((6, 5), (30, 37))
    heat = kcompile.occlusion(inc, image, overlap=0.5)
    assert heat.positions[:, 0, 0].tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert heat.positions[0, :, 1].tolist() == list(range(0, 33, 2))
    want = kcompile.occlusion(inc, image, stride=(3, 2))
    np.testing.assert_allclose(heat.all_scores, want.all_scores, atol=1e-6)
    assert np.isfinite(heat.attribution()[:30, :35]).all()
    default = kcompile.occlusion(inc, image)
    assert default.positions[1, 1].tolist() == [4, 4]
    smaller = kcompile.occlusion(inc, image, (2, 5), overlap=0)
    assert smaller.positions[1, 1].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 0.5, "stride": 4}, "stride is 4 and overlap is 0.5; allowed is one of them"),
        ({"overlap": 1}, "overlap is 1; allowed is a share of the patch, 0 <= overlap < 1"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"overlap": "half"}, "overlap is 'half'"),
        ({"overlap": (0.5, 0.5, 0.5)}, "overlap is (0.5, 0.5, 0.5)"),
        ({"overlap": (0.5, 1.0)}, "overlap is (0.5, 1.0)"),
        ({"roi": 5}, "roi is 5; allowed is (top, left, bottom, right) inside (0, 0, 30, 37)"),
        ({"roi": (0.0, 0, 30, 37)}, "roi is (0.0, 0, 30, 37)"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with refused(kcompile.InputError, message):
        kcompile.occlusion(compiled(), noise(SHAPE), **options)


def test_positions_of_other_axes() -> None:
    assert grid((10,), (4,), 3).tolist() == [[0], [3], [6]]
    assert grid((10,), (4,), 3, (1, 9)).tolist() == [[1], [4]]
    cube = grid((5, 6, 7), (2, 3, 4), (3, 2, 1))
    assert cube.shape == (2, 2, 4, 3)
    assert cube[1, 1, 3].tolist() == [3, 2, 3]
    with refused(kcompile.InputError, "(front, top, left, back, bottom, right) inside (0, 0, 0, 5, 6, 7)"):
        grid((5, 6, 7), (2, 3, 4), 1, (0, 0, 5, 6))
    with refused(kcompile.InputError, "roi is (0, 3): smaller than the 4 patch"):
        grid((10,), (4,), 1, (0, 3))


def signals() -> nn.Module:
    body = [nn.Conv1d(2, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(18, 3))


def volumes() -> nn.Module:
    body = [nn.Conv3d(1, 5, 3, padding=1), nn.BatchNorm3d(5), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(5, 4, 2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))


def brute_force(model: nn.Module, image: Tensor, positions: Any, patch: tuple[int, ...], fill: Any) -> Any:
    images = image.repeat(positions[..., 0].size, *[1] * image.dim())
    for one, at in zip(images, positions.reshape(-1, len(patch)).tolist(), strict=True):
        own = (slice(None), *(slice(a, a + size) for a, size in zip(at, patch, strict=True)))
        one[own] = one[own].flatten(1).mean(1).reshape(-1, *[1] * len(patch)) if fill == "patch-mean" else fill
    with torch.no_grad():
        return model(images).softmax(1).reshape(*positions.shape[:-1], -1).numpy()


@pytest.mark.parametrize("fill", [3.0, "patch-mean"])
@pytest.mark.parametrize(
    ("make", "shape", "patch", "roi"),
    [(signals, (2, 41), (7,), (3, 38)), (volumes, (1, 10, 12, 11), (3, 4, 2), (1, 0, 2, 9, 10, 11))],
    ids=["1d", "3d"],
)
def test_maps_of_other_axes(make: Any, shape: Any, patch: Any, roi: Any, fill: Any, seed: int, tmp_path: Any) -> None:
    """Positions [*grid, axes], attribution over all axes; files, but no picture."""
    model, image = ready(make(), shape, torch.float32), noise(shape)
    inc = incremental(model, shape, patch)
    heat = kcompile.occlusion(inc, image, stride=2, value=fill, roi=roi)
    want = brute_force(model, image, heat.positions, patch, fill)
    assert heat.scores.ndim == len(patch)
    change = np.abs(want - heat.base_scores).max()
    assert change > 1e-4, "void: the model does not react"
    np.testing.assert_allclose(heat.all_scores, want, rtol=0, atol=0.1 * change)
    plain = kcompile.occlusion(model, image[None], patch, stride=2, value=fill, roi=roi)
    np.testing.assert_allclose(plain.all_scores, want, rtol=0, atol=0.1 * change)
    found = heat.attribution()
    assert found.shape == shape[1:]
    for cell in product(*map(range, shape[1:])):
        over = ((heat.positions <= cell) & (np.array(cell) < heat.positions + patch)).all(-1)
        mean = (heat.base_score - heat.scores[over]).mean() if over.any() else np.nan
        np.testing.assert_allclose(found[cell], mean, atol=1e-6)
    heat.save(tmp_path / "map.npz")
    np.testing.assert_array_equal(kcompile.Heatmap.load(tmp_path / "map.npz").attribution(), found)
    with refused(kcompile.InputError, f"{len(patch)} axes can't be drawn, only one of two: use heat.attribution()"):
        heat.plot()


def test_other_fills_of_a_volume(seed: int) -> None:
    inc, image = (
        incremental(ready(volumes(), (1, 10, 12, 11), torch.float32), (1, 10, 12, 11), (3, 4, 2)),
        noise((1, 10, 12, 11)),
    )
    for value in ("blur", "noise", "mean", noise(image.shape), kcompile.Blur((0.5, 1, 2))):
        heat = kcompile.occlusion(inc, image, stride=3, value=value)
        assert heat.complete
        assert np.ptp(heat.scores) > 0
    volume = kcompile.occlusion(inc.model, image[None], 4, stride=5)  # five dimensions tell the axes
    assert volume.patch_shape == (4, 4, 4)
