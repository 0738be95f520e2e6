"""Corrections by exact positions: lattices, factors, interpolation, and what comes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile import Approximation
from kcompile.corrected import MOST, best_factor, interpolated, lattice
from tests.support.equivalence import incremental, reacting
from tests.support.networks import Gated, conv_bn_relu
from tests.support.running import incremental_wherever_possible


def test_interpolation_of_a_product_of_lines(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = [np.array([0, 3, 10]), np.array([2, 9])]
    slopes = rng.normal(size=(2, 2))

    def value(rows: Any, cols: Any) -> Any:
        return np.stack([(1 + a * rows) * (2 - b * cols) for a, b in slopes], axis=-1)

    values = value(*np.meshgrid(*lines, indexing="ij"))
    spots = np.stack([rng.integers(0, 11, 50), rng.integers(2, 10, 50)], axis=1)
    np.testing.assert_allclose(interpolated(lines, values, spots), value(*spots.T), rtol=1e-9, atol=1e-9)
    beyond = interpolated(lines, values, np.array([[0, 0], [12, 20]]))
    np.testing.assert_allclose(beyond, [values[0, 0], values[-1, -1]])
    alone = interpolated([np.array([4]), lines[1]], values[:1], np.array([[1, 2], [9, 9]]))
    np.testing.assert_allclose(alone, [values[0, 0], values[0, 1]])


def test_lattices() -> None:
    spots = np.stack(np.meshgrid(np.arange(0, 60, 4), np.arange(3, 40, 4), indexing="ij"), -1).reshape(-1, 2)
    assert [list(line) for line in lattice(spots, 9)] == [[0, 28, 56], [3, 23, 39]]
    assert [len(line) for line in lattice(spots, 1)] == [2, 2]
    assert [len(line) for line in lattice(spots, 10**6)] == [15, 10]
    assert [list(line) for line in lattice(spots[:1], 16)] == [[0], [3]]


def test_the_best_factor(seed: int) -> None:
    """In least squares, class by class; NaN and infinities are left out."""
    rng = torch.Generator().manual_seed(seed)
    guessed = torch.randn(40, 4, dtype=torch.float64, generator=rng)
    noise = 0.1 * torch.randn(40, 4, dtype=torch.float64, generator=rng)
    told = guessed * torch.tensor([0.5, 4.5, 100.0, -1.0]) + noise
    found = best_factor(told, guessed)
    for k in (0, 1):
        want = torch.linalg.lstsq(guessed[:, k : k + 1], told[:, k : k + 1]).solution
        assert float(found[k]) == pytest.approx(float(want), rel=1e-9)
    assert found[2:].tolist() == [MOST, 0.0]
    told[3], told[5], guessed[7] = torch.nan, torch.inf, -torch.inf
    known = [i for i in range(40) if i not in (3, 5, 7)]
    torch.testing.assert_close(best_factor(told, guessed), best_factor(told[known], guessed[known]))
    assert best_factor(told, torch.zeros_like(guessed)).tolist() == [0.0] * 4


SHAPE, PATCH = (3, 34, 29), (5, 4)
CLASSES = 10  # more than of which all logits are linearised


@pytest.fixture
def gated() -> tuple[kcompile.IncrementalModule, Tensor]:
    """A network that crops, held gates and a smaller type all change."""
    body = nn.Sequential(conv_bn_relu(3, 8), Gated(8), nn.MaxPool2d(2), conv_bn_relu(8, 8), conv_bn_relu(8, 8))
    model = nn.Sequential(body, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 8 * 7, CLASSES))
    model = reacting(model, torch.randn(8, *SHAPE)).double()
    with incremental_wherever_possible():
        return incremental(model, SHAPE, PATCH), torch.randn(*SHAPE, dtype=torch.float64)


def curved(outputs: Tensor) -> Tensor:
    return (outputs.square() + outputs)[:, :3]


@pytest.mark.parametrize("score", ["logit", "probability", curved], ids=str)
@pytest.mark.parametrize(
    "changes",
    [{"tau": 0.4}, {"gates": "held"}, {"tau": 0.6, "gates": "held"}, {"tau": 0.4, "cut": 0.9}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_corrections_are_exact_at_their_positions(
    changes: dict[str, Any], score: Any, gated: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a lattice of all positions gives the exact map, of all classes (of the target where there is a cut)."""
    monkeypatch.setattr("kcompile.variants.has_arithmetic", lambda *_: True)
    inc, image = gated
    options: Any = {"stride": (4, 3), "score": score, "target": 1}
    with incremental_wherever_possible():
        exact = kcompile.occlusion(inc, image, **options)
        rows, cols = exact.scores.shape
        settings = [Approximation(**changes, correct=count) for count in (0, 9, max(rows, cols) ** 2)]
        rough, coarse, whole = (kcompile.occlusion(inc, image, **options, approximation=one) for one in settings)
    known = ~np.isnan(coarse.all_scores[0, 0])
    assert known.sum() == (1 if "cut" in changes else exact.all_scores.shape[-1])
    scale, rounding = np.abs(exact.all_scores).max(), 1e-2 if "dtype" in changes else 1e-6
    np.testing.assert_allclose(
        whole.all_scores[..., known], exact.all_scores[..., known], rtol=0, atol=rounding * scale
    )
    np.testing.assert_allclose(coarse.base_scores, exact.base_scores, rtol=0, atol=1e-9 * scale)
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), -1).reshape(-1, 2)
    at = np.ix_(*lattice(grid, 9))
    np.testing.assert_allclose(coarse.scores[at], exact.scores[at], rtol=0, atol=rounding * scale)
    off = np.abs(rough.scores[at] - exact.scores[at]).max()
    assert off > (0 if "dtype" in changes else 1e-4 * scale), "void: nothing was approximated"
    assert "corrected by 9 exact ones" in repr(coarse)
    assert coarse.error is not None
    if score == "probability" and "cut" not in changes:
        np.testing.assert_allclose(coarse.all_scores.sum(-1), 1, atol=1e-6)


def test_several_images_and_drill_down(gated: Any, seed: int) -> None:
    """Each image has corrections of its own; positions between are interpolated as ever."""
    inc, image = gated
    settings = Approximation(tau=0.4, correct=16, share=0.3, coarse=8, samples=0)
    options: Any = {"stride": 2, "score": "logit", "approximation": settings}
    with incremental_wherever_possible():
        alone = [kcompile.occlusion(inc, one, **options, target=2) for one in (image, image.flip(1))]
        both = kcompile.occlusion(inc, [image, image.flip(1)], **options, target=2)
        pair = kcompile.occlusion(inc, image, **options, target=[2, 5])
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(other.all_scores, one.all_scores, rtol=0, atol=1e-6 * np.abs(one.all_scores).max())
    assert np.abs(both[0].scores - both[1].scores).max() > 1e-3 * np.abs(both[0].scores).max()
    np.testing.assert_array_equal(pair[1].scores, pair[0].retarget(5).scores)


def test_what_is_exact_needs_no_correction(gated: Any, seed: int) -> None:
    inc, image = gated
    settings = Approximation(share=0.2, coarse=8, samples=0)
    options: Any = {"stride": 2, "target": 0}
    plain = kcompile.occlusion(inc, image, **options, approximation=settings)
    told = kcompile.occlusion(inc, image, **options, approximation=replace(settings, correct=16))
    np.testing.assert_array_equal(plain.all_scores, told.all_scores)
    assert "corrected" not in str(replace(settings, correct=16))
