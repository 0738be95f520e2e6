"""`kcompile tune`, `explain` with what it wrote, and approximations by their options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kcompile import Approximation, Heatmap, Tuning
from tests.cli.conftest import LESIONS, Run

GUARANTEE = ("--coverage", "0.5", "--confidence", "0.7")  # two pictures can certify it
MAPS = ("--model", LESIONS, "--weights", "none", "--size", "64", "--patch", "16", "--stride", "4")


@pytest.fixture
def pictures(picture: Path, tmp_path: Path, seed: int) -> list[Path]:
    paths = []
    for number, noise in enumerate(np.random.default_rng(seed).normal(0, 4, (4, 64, 80, 3))):
        pixels = np.asarray(Image.open(picture), dtype=float) + noise
        paths.append(tmp_path / f"scan{number}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def test_a_tuning_is_written_and_used(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "tuning.json"
    result = run("tune", *pictures, *MAPS, *GUARANTEE, "--target-ssim", "0.3", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output
    tuning = Tuning.load(out)
    assert tuning.images == 2
    assert tuning.target_ssim == 0.3
    result = run("explain", pictures[0], *MAPS, "--tuning", out)
    assert result.exit_code == 0, result.output
    heat = Heatmap.load(tmp_path / "heat.npz")
    assert heat.score == "logit"
    assert heat.approximation == (None if tuning.approximation.exact else tuning.approximation)
    assert ("approximate" in result.output) == (not tuning.approximation.exact)
    promise = "certified   SSIM ≥ 0.3 for ≥ 50% of the images with 70% confidence (2 of 2 met it)"
    assert (promise in result.output) == (not tuning.approximation.exact)
    result = run("explain", pictures[0], *MAPS[:-1], "8", "--tuning", out)
    assert result.exit_code == 2
    assert "stride is (8, 8)" in result.output
    result = run("explain", pictures[0], *MAPS, "--tuning", out, "--tau", "0.5")
    assert result.exit_code == 2
    assert "allowed is one of them" in result.output
    if not tuning.approximation.exact:
        result = run("explain", pictures[0], *MAPS, "--tuning", out, "--compare", "3")
        assert result.exit_code == 2
        assert "--compare checks exact maps" in result.output


def test_too_few_pictures_are_told_how_many_it_takes(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    result = run("tune", *pictures, *MAPS, "--out", tmp_path / "tuning.json")
    assert result.exit_code == 2
    assert "4 images are too few" in result.output
    assert "at least 43" in result.output
    assert not (tmp_path / "tuning.json").exists()


def test_an_approximation_by_its_options(run: Run, picture: Path, tmp_path: Path) -> None:
    """The map is that of the same `Approximation` in Python, and its picture tells the error."""
    result = run("explain", picture, *MAPS, "--share", "0.3", "--coarse", "8", "--tau", "0.6", "--samples", "12")
    assert result.exit_code == 0, result.output
    heat = Heatmap.load(tmp_path / "heat.npz")
    assert heat.approximation == Approximation(share=0.3, coarse=8, tau=0.6, samples=12)
    assert str(heat.error) in result.output.replace("\n", " ")
    title = heat.plot(title="fluid").get_suptitle().replace("\n", " ")
    assert f"approximate: {heat.approximation}" in title
    assert f"{heat.error}" in title


@pytest.mark.parametrize(("text", "cut"), [("10", "10"), ("0.4", 0.4)])
def test_a_cut_is_a_layer_or_a_share(text: str, cut: str | float, run: Run, picture: Path, tmp_path: Path) -> None:
    assert run("explain", picture, *MAPS[:-1], "16", "--cut", text, "--samples", "0").exit_code == 0
    heat = Heatmap.load(tmp_path / "heat.npz")
    assert heat.approximation == Approximation(cut=cut, samples=0)
    assert heat.error is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "1.5"], "share is 1.5; allowed is 0 < share <= 1"),
        (["--gates", "open"], "gates is 'open'; allowed are 'exact', 'held', 'linear'"),
        (["--gates", "linear"], "needs a cut"),
        (["--samples", "8"], "--samples: nothing is approximated"),
        (["--cut", "layer9"], "--cut is 'layer9'; allowed are a layer of this model"),
        (["--cut", "1.5"], "cut is 1.5; allowed are"),
        (["--tau", "0.5", "--compare", "3"], "--compare checks exact maps"),
    ],
)
def test_approximations_that_are_refused(options: list[str], message: str, run: Run, picture: Path) -> None:
    result = run("explain", picture, *MAPS, *options)
    assert result.exit_code == 2
    assert message in result.output
