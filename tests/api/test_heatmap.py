"""Heatmap: attribution against a slow reference, another target, files and pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

import kcompile
from kcompile import InputError
from kcompile.drawn_fills import told
from kcompile.fills import NAMED, Constant

SIZE, PATCH = (20, 27), (6, 5)


def heatmap(rng: np.random.Generator, stride: tuple[int, int] = (3, 4), missing: int = 0) -> kcompile.Heatmap:
    rows, cols = (np.arange(0, s - p + 1, step) for s, p, step in zip(SIZE, PATCH, stride, strict=True))
    positions = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1)
    scores = rng.random((len(rows), len(cols), 3)).astype(np.float32)
    scores.reshape(-1, 3)[rng.permutation(len(rows) * len(cols))[:missing]] = np.nan
    return kcompile.Heatmap(scores, rng.random(3), 1, positions, PATCH, SIZE, "probability", 1.5, stopped=missing > 0)


def slow_attribution(heat: kcompile.Heatmap) -> Any:
    """Pixel by pixel."""
    result = np.full(SIZE, np.nan)
    corners = heat.positions.reshape(-1, 2)
    drops = heat.base_score - heat.scores.astype(np.float64).reshape(-1)
    for row in range(SIZE[0]):
        for col in range(SIZE[1]):
            inside = (corners <= (row, col)).all(1) & ((row, col) < corners + heat.patch_shape).all(1)
            covering = drops[inside & ~np.isnan(drops)]
            if covering.size:
                result[row, col] = covering.mean()
    return result


@pytest.mark.parametrize("missing", [0, 5])
@pytest.mark.parametrize("stride", [(1, 1), (3, 4), (6, 5), (9, 8), (100, 100)])
def test_attribution(stride: tuple[int, int], missing: int, seed: int) -> None:
    """Windows that overlap, meet or leave gaps; an interrupted map."""
    heat = heatmap(np.random.default_rng(seed), stride, missing)
    want = slow_attribution(heat)
    assert heat.attribution().shape == SIZE
    np.testing.assert_allclose(heat.attribution(), want, rtol=0, atol=1e-9)
    assert heat.complete == (not missing)


def test_attribution_of_a_patch_that_lowers_the_score_is_positive() -> None:
    positions = np.array([[[2, 3]]])
    heat = kcompile.Heatmap(np.array([[[0.25]]]), np.array([0.75]), 0, positions, (2, 2), (6, 6), "logit")
    found = heat.attribution()
    assert np.nansum(found) == pytest.approx(4 * 0.5)
    assert np.isfinite(found).sum() == 4
    assert np.isfinite(found[2:4, 3:5]).all()


def test_retarget(seed: int) -> None:
    heat = heatmap(np.random.default_rng(seed))
    other = heat.retarget(2)
    assert (heat.target, other.target) == (1, 2)
    assert np.array_equal(other.scores, heat.all_scores[..., 2])
    assert other.base_score == heat.base_scores[2]
    assert np.allclose(other.attribution(), slow_attribution(other), equal_nan=True)
    for target in (-1, 3, 1.5):
        with pytest.raises(kcompile.InputError, match=rf"target is {target}; allowed are 0 … 2"):
            heat.retarget(target)


@pytest.mark.parametrize("missing", [0, 3])
def test_npz_round_trip(missing: int, seed: int, tmp_path: Path) -> None:
    heat = heatmap(np.random.default_rng(seed), missing=missing)
    heat.save(tmp_path / "map.npz")
    again = kcompile.Heatmap.load(tmp_path / "map.npz")
    for name in heat.__dataclass_fields__:
        mine, want = getattr(again, name), getattr(heat, name)
        if isinstance(want, np.ndarray):
            assert mine.dtype == want.dtype
            np.testing.assert_array_equal(mine, want)
        else:
            assert mine == want
            assert type(mine) is type(want)
    with np.load(tmp_path / "map.npz") as data:  # for others to read
        np.testing.assert_array_equal(data["scores"], heat.scores)
        np.testing.assert_array_equal(data["attribution"], heat.attribution())


IMAGES = {
    "none": None,
    "rows and columns": np.random.default_rng(0).random(SIZE),
    "channels last": np.random.default_rng(0).random((*SIZE, 3)),
    "channels first, normalised": np.random.default_rng(0).standard_normal((3, *SIZE)),
    "bytes": np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_png(image: Any, seed: int, tmp_path: Path) -> None:
    heat = heatmap(np.random.default_rng(seed))
    figure = heat.plot(image)
    heat.save(tmp_path / "map.png", image)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    picture = imread(tmp_path / "map.png")
    width, height = (round(120 * side) for side in figure.get_size_inches())
    assert picture.shape == (height, width, 4)
    colours = np.unique(picture[..., :3].reshape(-1, 3), axis=0)
    assert len(colours) > 50, "the picture is empty"
    assert len(figure.axes) == (2 if image is None else 3)
    assert "class 1: probability" in figure.get_suptitle()


def test_the_picture_shows_the_attribution(seed: int, tmp_path: Path) -> None:
    heat = heatmap(np.random.default_rng(seed))
    heat.save(tmp_path / "one.png")
    heat.retarget(2).plot(path=tmp_path / "two.png", title="class 1: the same title")
    heat.plot(path=tmp_path / "three.png", title="class 1: the same title")
    assert (imread(tmp_path / "two.png") != imread(tmp_path / "three.png")).any()
    shown = next(picture for picture in heat.plot().axes[0].images if picture.get_visible())
    np.testing.assert_array_equal(np.asarray(shown.get_array().filled(np.nan)), heat.attribution())


@pytest.mark.parametrize("missing", [0, 24])
def test_interrupted_and_empty_maps_can_be_drawn(missing: int, seed: int) -> None:
    heat = heatmap(np.random.default_rng(seed), missing=missing)
    figure = heat.plot(np.zeros(SIZE))
    assert ("(interrupted: 6 of 30 positions)" in figure.get_suptitle()) == bool(missing)


def test_a_models_own_nan_is_no_interruption(seed: int, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).eval()
    image = torch.randn(3, 16, 16)
    base = model(image[None]).detach()

    def roots(outputs: torch.Tensor) -> torch.Tensor:
        return (outputs - base).abs() * (outputs - base).sqrt()

    heat = kcompile.occlusion(model, image, patch_shape=4, stride=1, score=roots, target=1)
    assert not np.isnan(heat.scores).all()
    assert np.isnan(heat.scores).any()
    assert heat.complete
    assert "interrupted" not in heat.caption
    heat.save(tmp_path / "map.npz")
    assert kcompile.Heatmap.load(tmp_path / "map.npz").complete


def test_a_picture_says_how_the_map_was_made(seed: int, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).eval()
    heat = kcompile.occlusion(model, torch.randn(3, 16, 16), (4, 5), stride=(3, 2), value=[0.5, -1, 2])
    assert "\npatch 4x5, value 0.5, -1, 2, stride 3x2" in heat.caption
    assert "patch 4x5, value 0.5, -1, 2, stride 3x2" in heat.plot(title="mine").get_suptitle()
    heat.save(tmp_path / "map.npz")
    assert kcompile.Heatmap.load(tmp_path / "map.npz").caption == heat.caption
    assert heatmap(np.random.default_rng(seed)).caption.endswith("patch 6x5, stride 3x4")


def test_a_single_position_has_no_stride(seed: int) -> None:
    assert "stride" not in heatmap(np.random.default_rng(seed), stride=(100, 100)).caption


def test_suffixes_in_capitals(seed: int, tmp_path: Path) -> None:
    heat = heatmap(np.random.default_rng(seed))
    heat.save(tmp_path / "a.NPZ")
    assert kcompile.Heatmap.load(tmp_path / "a.NPZ").caption == heat.caption
    heat.save(tmp_path / "a.PNG")
    assert imread(tmp_path / "a.PNG").ndim == 3


def test_files_that_hold_no_map(seed: int, tmp_path: Path) -> None:
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "other.npz", scores=np.zeros(3))
    for name in ("junk.npz", "cut.npz", "other.npz"):
        with pytest.raises(InputError, match=f"{name} holds no heat map"):
            kcompile.Heatmap.load(tmp_path / name)
    with pytest.raises(InputError, match=r"nowhere\.npz can't be read"):
        kcompile.Heatmap.load(tmp_path / "nowhere.npz")


def test_a_file_with_a_correction_of_nothing_is_read(seed: int, tmp_path: Path) -> None:
    """Such settings were allowed before, and left out."""
    heat = heatmap(np.random.default_rng(seed))
    replace(heat, approximation=kcompile.Approximation(share=0.2, coarse=8)).save(path := tmp_path / "map.npz")
    with np.load(path) as data:
        arrays = dict(data)
    facts = json.loads(str(arrays["facts"]))
    facts["approximation"]["correct"] = 16
    np.savez(path, **{**arrays, "facts": np.array(json.dumps(facts))})
    assert kcompile.Heatmap.load(path).approximation == kcompile.Approximation(share=0.2, coarse=8)
    facts["approximation"]["tau"] = 7
    np.savez(path, **{**arrays, "facts": np.array(json.dumps(facts))})
    with pytest.raises(InputError, match=r"map\.npz: tau is 7"):
        kcompile.Heatmap.load(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (np.float32(0.25), "0.25"), (torch.tensor([1.0, 2.0]), "1, 2"), ("mean", "mean"),
        (torch.zeros(3, 4, 4), "pixels of its own"), (kcompile.Blur(), "blur"), (kcompile.Blur(2), "blur (sigma 2)"),
        (kcompile.Noise(7), "noise (seed 7)"), (kcompile.Pixels(0.5, torch.neg), "0.5 in the picture's units"),
        (Fraction(1, 2), "0.5"), (kcompile.Blur("wide"), "blur (sigma of type str)"),  # type: ignore[arg-type]
        ([torch.tensor(1.0, requires_grad=True)] * 3, "of type list"), (range(64), "0, 1, 2, 3, … (64 numbers)"),
        (NAMED["patch-mean"], "PatchMean"), (NAMED["blur"], "blur"), (Constant(torch.tensor(3)), "3"),
    ],
)  # fmt: skip
def test_what_a_patch_shows_in_words(value: Any, text: str) -> None:
    assert told(value) == text


def test_files_without_that_word_are_told_by_their_scores(seed: int, tmp_path: Path) -> None:
    """Those of version 0 before `stopped`."""
    for missing in (0, 5):
        heatmap(np.random.default_rng(seed), missing=missing).save(path := tmp_path / "map.npz")
        with np.load(path) as data:
            arrays = dict(data)
        facts = json.loads(str(arrays["facts"]))
        assert facts.pop("stopped") == bool(missing)
        np.savez(path, **{**arrays, "facts": np.array(json.dumps(facts))})
        assert kcompile.Heatmap.load(path).complete == (not missing)


def test_other_files_are_refused(seed: int, tmp_path: Path) -> None:
    for name, said in (("map.jpg", r"\.jpg"), ("map", "without suffix")):
        with pytest.raises(kcompile.InputError, match=rf"{said}; allowed are \.png and \.npz"):
            heatmap(np.random.default_rng(seed)).save(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_picture_of_another_kind_is_refused(seed: int) -> None:
    with pytest.raises(kcompile.InputError, match=r"\(5, 20, 27\) can't be drawn"):
        heatmap(np.random.default_rng(seed)).plot(np.zeros((5, *SIZE)))


@pytest.mark.parametrize("missing", [0, 2, 10_000])
def test_printing_takes_one_line(missing: int, seed: int) -> None:
    heat = heatmap(np.random.default_rng(seed), missing=missing)
    text = repr(heat)
    assert "\n" not in text
    assert len(text) < 200
    assert f"target {heat.target}, probability" in text
    assert ("none yet" in text) == bool(np.isnan(heat.scores).all())
    assert ("positions" in text) == (missing > 0)


@pytest.mark.parametrize(
    ("size", "fits"), [((1, 1), True), ((2, 2), True), ((2.5, 2.5), True), ((1, 2), False), ((0.5, 0.5), False)]
)
def test_the_picture_must_be_of_the_map(size: tuple[float, float], fits: bool, seed: int) -> None:
    heat = heatmap(np.random.default_rng(seed))
    picture = np.zeros([round(side * factor) for side, factor in zip(SIZE, size, strict=True)])
    if fits:
        heat.plot(picture)
    else:
        with pytest.raises(InputError, match="of the same proportions"):
            heat.plot(picture)
