"""Projective field thresholding: where crops lie, and cropped inference against brute force, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile import Approximation, InputError
from kcompile.core.axis_map import Identity, Sliding, Transposed, centre
from kcompile.core.interval import Interval
from kcompile.core.plan import Plan
from kcompile.core.region import CroppedRegion, MappedRegion, crop, evaluate
from kcompile.core.resize_maps import Blocks
from kcompile.passes.propagate import propagate
from kcompile.passes.thresholds import share_of_the_map
from kcompile.runtime.scheduler import patch_regions
from kcompile.variants import EXACT, Changes, Cropping, canonical, changed
from tests.support.equivalence import incremental, reacting
from tests.support.networks import conv
from tests.support.running import incremental_wherever_possible, paste

SHAPE, PATCH = (3, 34, 29), (5, 4)


@pytest.fixture(autouse=True)
def _without_the_cost_model() -> Iterator[None]:
    """Small maps would be dense."""
    with incremental_wherever_possible():
        yield


@pytest.mark.parametrize("unit", [1, 2, 3])
def test_crop_by_brute_force(unit: int, seed: int) -> None:
    """The kept cells are as many as may be, inside the hull, and no other such run is nearer to the middle."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 12, 200) * unit
    hull = Interval.of(low, low + rng.integers(0, 9, 200) * unit)
    patch = Interval.of(low, low + rng.integers(1, 9, 200))
    at, most = (float(rng.uniform(0.2, 2)), float(rng.uniform(-3, 3))), int(rng.integers(1, 8))
    kept = crop(hull, patch, most, at, unit)
    size = -(-most // unit) * unit
    for lo, hi, a, b, first, stop in zip(hull.lo, hull.hi, kept.lo, kept.hi, patch.lo, patch.hi, strict=True):
        if hi - lo <= size:
            assert (a, b) == (lo, hi)
            continue
        middle = at[0] * (first + stop - 1) / 2 + at[1]
        starts = np.arange(lo, hi - size + 1, unit)
        best = np.abs(starts + (size - 1) / 2 - middle).min()
        assert b - a == size
        assert a in starts
        assert abs(a + (size - 1) / 2 - middle) <= best + (unit - 1) + 1e-9


@pytest.mark.parametrize(
    "maps",
    [
        [Sliding(7, 2, 3, 1, 240, 120), Sliding(3, 2, 1, 1, 120, 60), Sliding(3, 2, 1, 1, 60, 30)],  # ResNet's strides
        [Sliding(3, 2, 0, 1, 241, 120), Sliding(2, 2, 0, 1, 120, 60), Sliding(5, 1, 2, 1, 60, 60)],
        [Sliding(3, 1, 4, 4, 240, 240), Sliding(4, 2, 1, 1, 240, 120), Transposed(4, 2, 1, 1, 120, 240), Identity(240)],
        [Sliding(4, 4, 0, 1, 240, 60), Blocks(2, 60)],
    ],
)
def test_the_middle_is_not_off_by_half(maps: list[Any]) -> None:
    """Over all alignments to the strides the hulls of patches inside the image are centred where `centre` says."""
    low = np.arange(80, 80 + 16)
    hull, (a, b) = Interval.of(low, low + 7), (1.0, 0.0)
    for m in maps:
        hull, (scale, shift) = m.region(hull), centre(m)
        a, b = scale * a, scale * b + shift
    off = (hull.lo + hull.hi - 1) / 2 - (a * (low + 3) + b)
    assert abs(off.mean()) < 1e-9
    assert np.abs(off).max() <= 1


def chain() -> nn.Sequential:
    """Layers one behind the other, each a node of the graph."""
    return nn.Sequential(
        conv(3, 6, 7, stride=2), nn.ReLU(), conv(6, 6, (3, 5)), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(6, 8, 3),
        nn.ReLU(), nn.AvgPool2d(2), conv(8, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 3),
    )  # fmt: skip


def by_hand(model: nn.Sequential, plan: Plan, image: Tensor, position: Any) -> Tensor:
    """Layer by layer: full inference, and the base's values outside of the plan's regions."""
    spot = np.array([position])
    regions = evaluate(plan.regions, patch_regions(spot, PATCH))
    layers = [layer for layer in plan.layers if layer.op != "input"]
    base, x = image[None], paste(image[None], torch.zeros(1, 3, *PATCH, dtype=image.dtype), spot)
    for part, layer in zip(model, layers, strict=True):
        base, x = part(base), part(x)
        if layer.region is not None:
            inside = torch.zeros(x.shape[2:], dtype=torch.bool)
            rows, cols = regions[layer.region].axes
            inside[int(rows.lo[0]) : int(rows.hi[0]), int(cols.lo[0]) : int(cols.hi[0])] = True
            x = torch.where(inside, x, base)
    return x


@pytest.mark.parametrize("given", [{"tau": 0.7}, {"tau": 0.4}, {"tau": 0.1}, {"extents": "some"}])
def test_cropped_inference_by_hand(given: dict[str, Any], seed: int) -> None:
    model = reacting(chain(), torch.randn(8, *SHAPE)).double()
    inc, image = incremental(model, SHAPE, PATCH), torch.randn(*SHAPE, dtype=torch.float64)
    if "extents" in given:
        names = [layer.name for layer in inc.plan.layers if layer.op == "aten.conv2d.default"]
        given = {"extents": ((names[1], (5, 3)), (names[2], (3, 4)))}
    made = changed(inc, Changes(Cropping(**given)))
    some = [region for region in made.plan.regions if isinstance(region, CroppedRegion)]
    assert some
    made.materialize(image)
    inc.materialize(image)
    differs = 0.0
    for position in [(0, 0), (13, 11), (29, 25), (7, 25), (14, 12)]:
        found = made.forward_patches(0.0, [position])
        with torch.no_grad():
            want = by_hand(model, made.plan, image, position)
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
        differs = max(differs, float((found - inc.forward_patches(0.0, [position])).abs().max()))
    assert differs > 1e-6, "nothing was cropped"
    assert Plan.from_json(made.plan.to_json()) == made.plan


def test_tau_of_1_is_the_exact_module() -> None:
    model = chain().eval()
    inc = incremental(model, SHAPE, PATCH)
    assert changed(inc, Changes(Cropping(1.0))) is inc
    assert Changes(Cropping(1.0)) == EXACT
    module = canonical(inc)
    exact, limited = propagate(module, SHAPE, PATCH), propagate(module, SHAPE, PATCH, share_of_the_map(1.0))
    assert limited.table.defs == exact.table.defs
    assert all(type(entry) is not CroppedRegion for entry in limited.table.defs)


@pytest.mark.parametrize("tau", [0.9, 0.6, 0.3])
def test_extents_of_cropped_regions(tau: float) -> None:
    """Never more than round(tau * size) cells per axis (eq. 24-25), where that is less than what is left."""
    module = canonical(incremental(chain().eval(), SHAPE, PATCH))
    table = propagate(module, SHAPE, PATCH, share_of_the_map(tau)).table
    for number, entry in enumerate(table.defs[1:], 1):
        assert isinstance(entry, MappedRegion)
        limits = [max(1, int(tau * size + 0.5)) for size in entry.shape]
        assert all(have <= most for have, most in zip(table.widest(number), limits, strict=True))


def test_maps_with_tau_come_nearer_to_the_exact_one(seed: int) -> None:
    model = reacting(chain(), torch.randn(8, *SHAPE)).eval()
    inc, image = incremental(model, SHAPE, PATCH), torch.randn(*SHAPE)
    exact = kcompile.occlusion(inc, image, score="logit", target=0)
    wide, narrow = (
        kcompile.occlusion(inc, image, score="logit", target=0, approximation=Approximation(tau=tau))
        for tau in (0.9, 0.15)
    )
    errors = [float(np.abs(heat.scores - exact.scores).mean()) for heat in (wide, narrow)]
    assert errors[0] < 0.5 * errors[1]
    assert wide.approximation == Approximation(tau=0.9)
    np.testing.assert_array_equal(wide.base_scores, exact.base_scores)


def test_tau_and_a_linear_tail(seed: int) -> None:
    """A linear network with a cropped front: the cut keeps what the front makes of it."""
    model = reacting(
        nn.Sequential(conv(3, 6, 7, stride=2), conv(6, 4, 5), nn.Flatten(), nn.Linear(4 * 17 * 15, 2)),
        torch.randn(8, *SHAPE),
    )
    inc, image = incremental(model.double(), SHAPE, PATCH), torch.randn(*SHAPE, dtype=torch.float64)
    options: Any = {"stride": 30, "roi": (11, 9, 17, 15), "score": "logit", "target": 0}  # one position: no wider boxes
    whole = kcompile.occlusion(inc, image, **options, approximation=Approximation(tau=0.2))
    both = kcompile.occlusion(inc, image, **options, approximation=Approximation(tau=0.2, cut="1"))
    exact = kcompile.occlusion(inc, image, **options)
    np.testing.assert_allclose(both.scores, whole.scores, rtol=1e-6)
    assert np.abs(exact.scores - whole.scores).max() > 1e-4 * np.abs(exact.scores).max()


def test_measured_extents(seed: int) -> None:
    """They grow with the share, hold it (by hand, for one layer), and make better maps than a global share does."""
    model = reacting(chain(), torch.randn(8, *SHAPE)).eval()
    inc, image = incremental(model, SHAPE, PATCH), torch.randn(*SHAPE)
    some, most = (dict(kcompile.measure_extents(inc, [image], keep, positions=40, seed=seed)) for keep in (0.6, 0.97))
    assert set(most) <= set(some)
    assert all(a <= b for name in most for a, b in zip(some[name], most[name], strict=True))
    assert some != most
    exact, low, high = (
        kcompile.occlusion(inc, image, score="logit", target=0, approximation=Approximation(extents=extents))
        for extents in ({}, some, most)
    )
    errors = [float(np.abs(heat.scores - exact.scores).mean()) for heat in (high, low)]
    assert 0 < errors[0] < errors[1]
    first = next(layer.name for layer in inc.plan.layers if layer.op == "aten.conv2d.default")
    with torch.no_grad():
        spots = np.random.default_rng(seed).integers(0, np.subtract(SHAPE[1:], PATCH) + 1, size=(40, 2))
        copies = paste(image.expand(40, *SHAPE), torch.zeros(40, 3, *PATCH), spots)
        change = (model[0](copies) - model[0](image[None])).abs().sum(1).double().numpy()
    height = some.get(first, (99, 99))[0]
    shares = []
    for cells in (height, height - 1):
        inside = 0.0
        for row, (top, _) in zip(change, spots.tolist(), strict=True):
            lines = row.sum(1)
            high = min(17, (top + 4 + 3) // 2 + 1)
            low = max(0, int(np.ceil((top + 3 - 6) / 2)))
            start = int(np.ceil((top + 2) / 2 - (cells - 1) / 2 - 0.5))
            start = min(max(start, low), max(high - cells, low))
            inside += lines[start : min(start + cells, high)].sum()
        shares.append(inside / change.sum())
    assert shares[0] >= 0.6 > shares[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"keep": 1.0}, "keep is 1.0"), ({"keep": 0}, "keep is 0"), ({"positions": 0}, "positions is 0")],
)
def test_bad_measurements(change: dict[str, Any], message: str) -> None:
    inc = incremental(chain().eval(), SHAPE, PATCH)
    with pytest.raises(InputError, match=message):
        kcompile.measure_extents(inc, torch.randn(*SHAPE), **change)


@pytest.mark.parametrize("extents", [{"conv2d_77": (3, 3)}, {"conv2d": (3,)}])
@pytest.mark.parametrize("cut", [None, "2"])
def test_extents_of_another_model(extents: dict[str, Any], cut: str | None) -> None:
    inc = incremental(chain().eval(), SHAPE, PATCH)
    with pytest.raises(InputError, match="layers of this model's graph, with 2 numbers"):
        kcompile.occlusion(inc, torch.randn(*SHAPE), approximation=Approximation(extents=extents, cut=cut))


@pytest.mark.parametrize("crops", [{"tau": 0.3}, {"tau": 0.1}, {"extents": {"conv2d": (2, 3)}}])
def test_the_rest_to_first_order(crops: dict[str, Any], seed: int) -> None:
    """A linear network is exact again; another is what its three parts make, and nearer to the exact map."""
    straight = nn.Sequential(conv(3, 6, 7, stride=2), conv(6, 4, 5), nn.Flatten(), nn.Linear(4 * 17 * 15, 2))
    inc = incremental(reacting(straight, torch.randn(8, *SHAPE)).double(), SHAPE, PATCH)
    image = torch.randn(*SHAPE, dtype=torch.float64)
    options: Any = {"stride": 3, "score": "logit", "target": [0, 1]}
    exact = kcompile.occlusion(inc, image, **options)[0]
    scale = np.abs(exact.all_scores).max()
    dropped = kcompile.occlusion(inc, image, **options, approximation=Approximation(**crops))[0]
    assert np.abs(dropped.all_scores - exact.all_scores).max() > 1e-4 * scale
    settings = Approximation(**crops, cut="1", rest="linear")
    found = kcompile.occlusion(inc, image, **options, approximation=settings)[0]
    np.testing.assert_allclose(found.all_scores, exact.all_scores, rtol=0, atol=1e-6 * scale)
    assert "the rest linear behind 1" in repr(found)
    first, share = (  # a share of the work lies where it does without crops, for both tails
        kcompile.occlusion(inc, image, **options, approximation=replace(settings, cut=cut))[0] for cut in ("0", 0.6)
    )
    np.testing.assert_allclose(first.all_scores, share.all_scores, rtol=0, atol=1e-6 * scale)

    inc = incremental(reacting(chain(), torch.randn(8, *SHAPE)).double(), SHAPE, PATCH)
    one: Any = {"stride": 30, "roi": (11, 9, 17, 15), "score": "logit", "target": [0, 1, 2]}  # no wider boxes
    parts = [Approximation(**crops), Approximation(cut="4"), Approximation(**crops, cut="4")]
    core, whole, cropped = (kcompile.occlusion(inc, image, **one, approximation=part)[0].all_scores for part in parts)
    found = kcompile.occlusion(inc, image, **one, approximation=Approximation(**crops, cut="4", rest="linear"))[0]
    np.testing.assert_allclose(found.all_scores, core + whole - cropped, rtol=0, atol=1e-5 * np.abs(core).max())
    assert np.abs(whole - cropped).max() > 1e-5 * np.abs(core).max()


def test_the_rest_of_probabilities_and_bad_settings(seed: int) -> None:
    inc = incremental(reacting(chain(), torch.randn(8, *SHAPE)), SHAPE, PATCH)
    settings = Approximation(tau=0.3, cut="4", rest="linear")
    heat = kcompile.occlusion(inc, torch.randn(*SHAPE), stride=3, approximation=settings)
    np.testing.assert_allclose(heat.all_scores.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(heat.base_scores.sum(), 1, atol=1e-5)
    with pytest.raises(InputError, match="allowed with rest='linear' is 0"):
        kcompile.occlusion(inc, torch.randn(*SHAPE), approximation=replace(settings, correct=9))
