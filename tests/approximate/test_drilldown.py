"""Drill-down and anytime maps of small networks that react: exact where computed, interpolated elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kcompile
from kcompile import Approximation
from kcompile.estimate import Checked
from kcompile.scorers import Exact
from tests.support.equivalence import reacting
from tests.support.networks import conv_bn_relu, pooled_head

SIZE, PATCH, STRIDE = 40, 8, 2  # 17 x 17 positions


@pytest.fixture(scope="module")
def inc() -> Any:
    torch.manual_seed(0)
    model = pooled_head(torch.nn.Sequential(conv_bn_relu(3, 6), torch.nn.MaxPool2d(2), conv_bn_relu(6, 8)), 8)
    return kcompile.incrementalize(reacting(model, torch.rand(8, 3, SIZE, SIZE)), (3, SIZE, SIZE), PATCH)


@pytest.fixture
def image(seed: int) -> Tensor:
    rows = torch.linspace(0, 5, SIZE)
    return (rows.sin()[:, None] * rows.cos()[None]).expand(3, -1, -1) + 0.1 * torch.rand(3, SIZE, SIZE)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each call of the exact scorer had."""
    calls: list[int] = []
    at = Exact.at

    def spy(self: Exact, positions: Any) -> Any:
        calls.append(len(positions))
        return at(self, positions)

    monkeypatch.setattr(Exact, "at", spy)
    return calls


def occlusion(inc: Any, image: Any, **options: Any) -> Any:
    return kcompile.occlusion(inc, image, stride=STRIDE, score="logit", **options)


def test_a_share_of_one_selects_the_exact_path(inc: Any, image: Tensor, asked: list[int]) -> None:
    exact = occlusion(inc, image)
    same = occlusion(inc, image, approximation=Approximation(share=1.0, coarse=8))
    assert np.array_equal(exact.all_scores, same.all_scores)
    assert same.approximation is None
    assert same.error is None
    assert asked == [289, 289]


@pytest.mark.parametrize(("coarse", "levels"), [(8, 2), (8, 3), (16, 4), (4, 2), (None, 2)])
def test_what_is_computed_is_exact_and_the_rest_is_near(
    inc: Any, image: Tensor, asked: list[int], coarse: int | None, levels: int
) -> None:
    exact = occlusion(inc, image)
    asked.clear()
    heat = occlusion(inc, image, approximation=Approximation(share=0.2, coarse=coarse, levels=levels, samples=0))
    scale = np.abs(exact.all_scores).max()
    right = np.abs(heat.all_scores - exact.all_scores).max(axis=-1) <= 1e-4 * scale
    assert right.sum() >= sum(asked) >= 25
    assert sum(asked) < 0.75 * 289
    assert len(asked) == levels
    assert heat.complete
    assert heat.checked is None
    error = np.sqrt(np.mean((heat.scores - exact.scores) ** 2))
    assert error < (1.2 if coarse == 16 else 0.8) * exact.scores.std()  # of 3 x 3 positions first, or of 5 x 5 and more


@pytest.mark.parametrize("coarse", [1, 200])
def test_a_map_that_is_computed_wholly_says_nothing_of_a_share(
    inc: Any, image: Tensor, asked: list[int], coarse: int
) -> None:
    """A first stage of all positions; one of the corners alone, whose only cell is the whole map."""
    exact = occlusion(inc, image)
    asked.clear()
    heat = occlusion(inc, image, approximation=Approximation(share=0.1, coarse=coarse))
    assert sum(asked) == 289
    np.testing.assert_allclose(heat.all_scores, exact.all_scores, rtol=0, atol=1e-5)
    assert heat.approximation is None
    assert heat.checked is None
    cropped = occlusion(inc, image, approximation=Approximation(share=0.1, coarse=coarse, tau=0.5))
    assert cropped.approximation == Approximation(tau=0.5)


def test_a_map_tells_how_many_stages_it_had(inc: Any, image: Tensor, asked: list[int]) -> None:
    heat = occlusion(inc, image, approximation=Approximation(share=0.2, coarse=8, levels=9, samples=0))
    assert heat.approximation.levels == len(asked) == 3
    assert "in 3 stages" in heat.caption


@pytest.mark.parametrize(("stride", "asked_for", "real"), [(4, 10, 8), (4, 6, 8), (4, 14, 16), (2, 5, 4), (2, 8, 8)])
def test_a_map_tells_the_first_stride_that_it_had(
    inc: Any, image: Tensor, stride: int, asked_for: int, real: int
) -> None:
    """Whole steps of its own."""
    settings = Approximation(share=0.1, coarse=asked_for, samples=0)
    heat = kcompile.occlusion(inc, image, stride=stride, approximation=settings)
    assert heat.approximation == replace(settings, coarse=real)
    assert f"10% of the positions after every {real} px" in heat.caption


def test_small_shares_are_not_rounded_to_none() -> None:
    assert str(Approximation(share=0.004)) == "0.4% of the positions"


def test_several_images_and_targets(inc: Any, image: Tensor) -> None:
    images = [image, image.flip(2)]
    settings = Approximation(share=0.3, coarse=8, samples=8)
    maps = occlusion(inc, images, target=[0, 2], approximation=settings)
    alone = occlusion(inc, images[1], target=[0, 2], approximation=settings)
    for target in (0, 1):
        assert np.allclose(maps[1][target].all_scores, alone[target].all_scores, atol=1e-5)
        assert maps[1][target].error is not None


def test_progress_ends_at_all_positions(inc: Any, image: Tensor) -> None:
    seen: list[kcompile.Progress] = []
    occlusion(inc, image, approximation=Approximation(share=0.1, coarse=8, samples=0), callback=seen.append)
    assert seen[-1].done == seen[-1].total == 289


# ---------------------------------------------------------------- the error


def test_the_error_is_that_of_positions_that_are_not_computed(inc: Any, image: Tensor, tmp_path: Path) -> None:
    exact = occlusion(inc, image)
    heat = occlusion(inc, image, approximation=Approximation(share=0.2, coarse=8, samples=40))
    assert heat.checked is not None
    assert len(heat.checked.rows) == 40
    assert heat.error.samples == 40
    assert 40 < heat.error.positions < 289
    assert heat.error.share == 0.9
    assert heat.error.low <= heat.error.error <= heat.error.high <= heat.error.largest
    found = np.abs(heat.scores - exact.scores).reshape(-1)[heat.checked.rows]
    assert heat.error.largest == pytest.approx(found.max(), rel=1e-3, abs=1e-5)
    assert found.max() > 1e-3 * np.abs(exact.scores).max()  # they are interpolated ones
    assert "90% of the approximated positions are off by" in heat.caption
    other = heat.retarget((heat.target + 1) % 3)
    assert other.error.error != heat.error.error
    heat.save(tmp_path / "heat.npz")
    back = kcompile.Heatmap.load(tmp_path / "heat.npz")
    assert back.error == heat.error
    assert back.approximation == heat.approximation
    figure = heat.plot()
    assert str(heat.error) in " ".join(figure.get_suptitle().split())


def test_a_seed_repeats_the_estimate(inc: Any, image: Tensor, seed: int) -> None:
    settings = Approximation(share=0.2, coarse=8, samples=8, seed=seed)
    rows = [occlusion(inc, image, approximation=settings).checked.rows for _ in range(2)]
    np.testing.assert_array_equal(*rows)
    others = [occlusion(inc, image, approximation=replace(settings, seed=seed + n)).checked.rows for n in (1, 2, 3)]
    assert any((rows[0] != other).any() for other in others)


def test_its_coverage_over_whole_maps(inc: Any, image: Tensor) -> None:
    """Of many draws on the same map at least 90 % have the true quantile in their interval."""
    exact = occlusion(inc, image)
    settings = Approximation(share=0.2, coarse=8, samples=32)
    held, runs = 0, 150
    heat = occlusion(inc, image, approximation=settings)
    errors = np.abs(heat.scores - exact.scores).reshape(-1)
    untouched = errors > 1e-6 * np.abs(exact.scores).max()
    truth = np.sort(np.partition(errors, errors.size - heat.error.positions)[-heat.error.positions :])
    quantile = truth[int(np.ceil(0.9 * len(truth) - 1e-9)) - 1]
    assert untouched.sum() >= heat.error.positions - 5
    rng = np.random.default_rng()
    candidates = np.argsort(errors, kind="stable")[-heat.error.positions :]
    for _ in range(runs):
        rows = rng.choice(candidates, 32, replace=False)
        checked = Checked(rows, exact.all_scores.reshape(289, -1)[rows], len(candidates))
        found = checked.against(heat.all_scores, heat.target)
        assert found is not None
        held += found.low - 1e-6 <= quantile <= found.high + 1e-6
    assert held / runs >= 0.9 - 3.5 * np.sqrt(0.09 / runs)


# ---------------------------------------------------------------- interruption


def interrupt_after(count: int) -> Callable[[kcompile.Progress], bool]:
    def callback(progress: kcompile.Progress) -> bool:
        if progress.done >= count:
            raise KeyboardInterrupt
        return True

    return callback


@pytest.mark.parametrize("stopped_by", ["Ctrl-C", "callback"])
@pytest.mark.parametrize("count", [1, 25, 26])  # in the first stage, at its end, in the second
def test_a_stopped_drill_down_has_what_was_computed_alone(inc: Any, image: Tensor, count: int, stopped_by: str) -> None:
    """Interpolation of a coarser stage would pass for the map that was asked for."""
    callback = interrupt_after(count) if stopped_by == "Ctrl-C" else lambda progress: progress.done < count
    heat = occlusion(inc, image, approximation=Approximation(share=0.3, coarse=8), callback=callback)
    exact = occlusion(inc, image)
    there = np.isfinite(heat.scores)
    assert count <= there.sum() < 200
    assert np.allclose(heat.scores[there], exact.scores[there], atol=1e-4 * np.abs(exact.scores).max())
    assert not heat.complete
    assert heat.checked is None
    assert f"(interrupted: {there.sum()} of {there.size} positions)" in heat.caption


# ---------------------------------------------------------------- anytime


def test_steps_get_finer_and_end_at_the_exact_map(inc: Any, image: Tensor, asked: list[int]) -> None:
    exact = occlusion(inc, image)
    asked.clear()
    maps = list(kcompile.occlusion_steps(inc, image, stride=STRIDE, score="logit", parts=3))
    assert sum(asked) == 289  # nothing twice
    assert np.abs(maps[-1].all_scores - exact.all_scores).max() <= 1e-4 * np.abs(exact.all_scores).max()
    assert maps[-1].approximation is None
    shares = [heat.approximation.share for heat in maps[:-1]]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.3
    assert len(maps) == 4  # a first stride of twice the last, 9 positions along each axis
    errors = [float(np.abs(heat.scores - exact.scores).mean()) for heat in maps]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < exact.scores.std()
    assert all(heat.complete for heat in maps)
    assert maps[0].seconds < maps[-1].seconds
    assert not np.shares_memory(maps[0].all_scores, maps[-1].all_scores)


@pytest.mark.parametrize("coarse", [2, 4, 8, 100])
def test_any_first_stride(inc: Any, image: Tensor, coarse: int) -> None:
    exact = occlusion(inc, image, roi=(3, 4, 36, 25))
    *_, last = kcompile.occlusion_steps(
        inc, image, stride=STRIDE, score="logit", roi=(3, 4, 36, 25), coarse=coarse, parts=1
    )
    assert np.array_equal(last.positions, exact.positions)
    assert np.abs(last.all_scores - exact.all_scores).max() <= 1e-4 * np.abs(exact.all_scores).max()


def test_the_module_may_be_used_for_another_image_between_steps(inc: Any, image: Tensor) -> None:
    exact = occlusion(inc, image)
    maps = []
    for heat in kcompile.occlusion_steps(inc, image, stride=STRIDE, score="logit"):
        maps.append(heat)
        inc.materialize(image.flip(1))
    heat = maps[-1]
    assert np.abs(heat.all_scores - exact.all_scores).max() <= 1e-4 * np.abs(exact.all_scores).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": [1]}, "one class"),
        ({"parts": 0}, "parts is 0"),
        ({"coarse": 0}, "coarse is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"target": 99}, "target is 99"),
    ],
)
def test_bad_arguments_of_steps(inc: Any, image: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(kcompile.InputError, match=message):
        next(kcompile.occlusion_steps(inc, image, **options))
    with pytest.raises(kcompile.InputError, match="one image, got 2"):
        kcompile.occlusion_steps(inc, torch.stack([image, image]))
