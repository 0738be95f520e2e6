"""`kcompile explain`, as a user runs it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from examples.lesions.network import load_pretrained, preprocess
from kcompile import Blur, Heatmap, IncrementalModule, Noise, occlusion
from kcompile.cli import app
from tests.cli.conftest import LESIONS, Run

ROOT = Path(__file__).resolve().parents[2]
# Logits: on a part of the scan the network is so sure that no probability moves.
QUICK = ("--model", LESIONS, "--size", 64, "--stride", 16, "--score", "logit")


def test_the_map_is_that_of_a_loop_over_patched_copies(run: Run, picture: Path, tmp_path: Path) -> None:
    result = run("explain", picture, *QUICK, "--patch", "16,8", "--stride", "16,12", "--value", "0.5,0,-1")
    assert result.exit_code == 0, result.output
    with Image.open(picture) as file:
        pixels = np.asarray(file)[:, 8:72].transpose(2, 0, 1) / 255  # centre crop
    image, model = preprocess(pixels), load_pretrained()
    heat = Heatmap.load(tmp_path / "heat.npz")
    assert heat.scores.shape == (4, 5)
    change = np.abs(heat.all_scores - heat.base_scores).max()
    assert change > 1e-2 * np.abs(heat.all_scores).max()  # else the comparison below is void
    for (row, col), scores in zip(heat.positions.reshape(-1, 2), heat.all_scores.reshape(-1, 4), strict=True):
        copy = image.clone()
        copy[:, row : row + 16, col : col + 8] = torch.tensor([0.5, 0.0, -1.0])[:, None, None]
        with torch.inference_mode():
            np.testing.assert_allclose(scores, model(copy[None])[0], atol=1e-4 * np.abs(heat.all_scores).max())
    with Image.open(tmp_path / "heat.png") as overlay:
        assert overlay.size == (1164, 564)


def test_what_is_printed(run: Run, picture: Path, tmp_path: Path) -> None:
    result = run("explain", picture, *QUICK, "--target", "Fluid", "--roi", "8,0,64,64", "--compare", 5)
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith(" "))
    assert lines["model"].startswith(f"{LESIONS}, its own weights")
    assert "the model's own preprocess function" in lines["picture"]
    heat = Heatmap.load(tmp_path / "heat.npz")
    assert lines["prediction"] == f"fluid (2), logit {heat.base_score:.4f}"
    assert lines["positions"] == "12 (3 rows, 4 columns), patch 16x16, stride 16x16"
    assert lines["compare"].startswith("equal: 5 positions against full inference")
    assert "largest difference" in result.stdout
    assert lines["wrote"] == f"{tmp_path / 'heat.png'} and {tmp_path / 'heat.npz'}"


@pytest.mark.parametrize("value", ["mean", "patch-mean", "blur", "blur:2.5", "noise", "noise:8"])
def test_fills(value: str, run: Run, picture: Path, tmp_path: Path) -> None:
    """The map is that of the same fill in Python, and the comparison makes the same patches."""
    result = run("explain", picture, *QUICK, "--value", value, "--compare", 6)
    assert result.exit_code == 0, result.output
    assert "equal: 6 positions" in result.stdout
    with Image.open(picture) as file:
        image = preprocess(np.asarray(file)[:, 8:72].transpose(2, 0, 1) / 255)
    name, _, number = value.partition(":")
    fill = name if not number else Blur(float(number)) if name == "blur" else Noise(int(number))
    want = occlusion(load_pretrained(), image, stride=16, value=fill, score="logit")
    heat = Heatmap.load(tmp_path / "heat.npz")
    np.testing.assert_allclose(heat.all_scores, want.all_scores, atol=1e-4 * np.abs(want.all_scores).max())
    assert np.abs(heat.all_scores - heat.base_scores).max() > 1e-3 * np.abs(want.all_scores).max()


def test_an_overlap_instead_of_a_stride(run: Run, picture: Path, tmp_path: Path) -> None:
    result = run("explain", picture, "-m", LESIONS, "--size", 64, "--patch", "16,8", "--overlap", 0.25)
    assert result.exit_code == 0, result.output
    assert "patch 16x8, stride 12x6" in result.stdout
    assert Heatmap.load(tmp_path / "heat.npz").scores.shape == (5, 10)


def test_several_pictures(run: Run, picture: Path, tmp_path: Path) -> None:
    """One compiled model, a map of each in one folder."""
    with Image.open(picture) as file:
        file.rotate(180).save(tmp_path / "turned.tif")
    maps = tmp_path / "maps"
    result = CliRunner().invoke(
        app, ["explain", str(picture), str(tmp_path / "turned.tif"), *map(str, QUICK), "--out", str(maps)]
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in maps.iterdir()) == ["picture.npz", "picture.png", "turned.npz", "turned.png"]
    assert result.stdout.count("compiled in") == 1
    assert result.stdout.count("prediction") == 2
    one, other = (Heatmap.load(maps / f"{name}.npz") for name in ("picture", "turned"))
    assert np.abs(one.scores - other.scores).max() > 1e-2
    run("explain", tmp_path / "turned.tif", *QUICK)
    np.testing.assert_allclose(Heatmap.load(tmp_path / "heat.npz").scores, other.scores, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "heat.png"], "error: --out is heat.png; of several pictures the maps go into one folder"),
        (["--npz", "heat.npz"], "error: --npz is heat.npz; of several pictures the maps go into one folder"),
        (["--out", "."], "error: two pictures are called picture: their maps would be one file"),
    ],
)
def test_several_pictures_and_bad_names(options: list[str], message: str, picture: Path) -> None:
    result = CliRunner().invoke(app, ["explain", str(picture), str(picture), *map(str, QUICK), *options])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(message)


def test_a_torchvision_model_without_weights(run: Run, picture: Path, tmp_path: Path) -> None:
    result = run(
        "explain", picture, "-m", "resnet18", "-w", "none", "--size", 64, "-s", 24, "--score", "logit", "--compare", 9,
        "--value", "mean", "--threads", torch.get_num_threads(),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "random weights" in result.stdout
    heat = Heatmap.load(tmp_path / "heat.npz")
    assert heat.score == "logit"
    assert heat.all_scores.shape == (3, 3, 1000)


def test_a_wrong_map_is_found_by_the_comparison(run: Run, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = IncrementalModule.stream_patches

    def shifted(self: IncrementalModule, patches: Any, positions: Any, **rest: Any) -> Iterator[Any]:
        yield from stream(self, patches, np.maximum(np.asarray(positions) - 1, 0), **rest)

    monkeypatch.setattr(IncrementalModule, "stream_patches", shifted)
    result = run("explain", picture, *QUICK, "--compare", 9)
    assert result.exit_code == 1, result.output
    assert "DIFFERENT: 9 positions" in result.stdout


def test_a_map_that_ignores_the_patch_is_found(run: Run, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = IncrementalModule.stream_patches

    def ignoring(self: IncrementalModule, patches: Any, positions: Any, **rest: Any) -> Iterator[Any]:
        for rows, outputs, total in stream(self, patches, positions, **rest):
            yield rows, tuple(self.base_output.expand_as(part) for part in outputs), total

    monkeypatch.setattr(IncrementalModule, "stream_patches", ignoring)
    result = run("explain", picture, *QUICK, "--compare", 9)
    assert result.exit_code == 1, result.output
    assert "DIFFERENT: 9 positions" in result.stdout


def test_a_comparison_without_a_reaction_proves_nothing(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    black = "-1.0681818,-1.0681818,-1.0681818"  # in the network's units: the patches change nothing
    result = run("explain", tmp_path / "black.png", *QUICK, "--compare", 4, f"--value={black}")
    assert result.exit_code == 1, result.output
    assert "void: 4 positions" in result.stdout
    assert "proves nothing" in result.stdout


def test_an_interrupted_map_is_written(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = IncrementalModule.stream_patches

    def interrupted(self: IncrementalModule, patches: Any, positions: Any, **rest: Any) -> Iterator[Any]:
        rows, outputs, total = next(stream(self, patches, positions, **rest))
        yield rows[:20], tuple(part[:20] for part in outputs), total
        raise KeyboardInterrupt

    monkeypatch.setattr(IncrementalModule, "stream_patches", interrupted)
    result = run("explain", picture, *QUICK, "--stride", 4, "--compare", 3)
    assert result.exit_code == 130, result.output
    assert "20 of 169 positions are done; the map is partial" in result.stdout
    heat = Heatmap.load(tmp_path / "heat.npz")
    assert not heat.complete
    assert np.isfinite(heat.scores).sum() == 20
    assert (tmp_path / "heat.png").exists()


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    scan = ROOT / "examples/lesions/fluid.png"
    command = [sys.executable, "-m", "kcompile", "explain", scan, "-m", LESIONS, "-s", "1", "--npz", tmp_path / "h.npz"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--out", tmp_path / "h.png"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("picture"):
            assert process.poll() is None
        time.sleep(3)  # 43,681 positions take half a minute
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert "the map is partial" in rest
    assert Heatmap.load(tmp_path / "h.npz").scores.shape == (209, 209)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patch", "65"], "patch_shape is (65, 65); allowed are 1 … (64, 64)"),
        (["--size", "16"], "the model does not run on images of shape (3, 16, 16)"),
        (["--patch", "big"], "--patch is 'big'; allowed are 1 or 2 integers"),
        (["--stride", "0"], "stride is (0, 0); allowed are integers of at least 1"),
        (["--roi", "0,0,8,8"], "roi is (0, 0, 8, 8): smaller than the 16x16 patch"),
        (["--roi", "0,0,64"], "--roi is '0,0,64'; allowed are 4 integers"),
        (["--target", "4"], "target is 4; the model has classes 0 … 3"),
        (["--target", "fluids"], "there is no class 'fluids': did you mean fluid?"),
        (
            ["--target", "oedema"],
            "there is no class 'oedema': allowed are normal, drusen, fluid, membrane, or a number",
        ),
        (["--value", "nan"], "value is nan; allowed are numbers, not NaN"),
        (
            ["--value", "1,2"],
            "--value is '1,2'; allowed are mean, patch-mean, blur, blur:SIGMA, noise, noise:SEED, one number, or 3",
        ),
        (["--value", "blur:wide"], "--value is 'blur:wide'; allowed are mean, patch-mean"),
        (["--value", "blur:-1"], "sigma is -1.0; allowed are 0 … 10000 pixels"),
        (["--value", "noise:1.5"], "--value is 'noise:1.5'"),
        (["--value", "mean:2"], "--value is 'mean:2'"),
        (["--overlap", "0.5"], "stride is (16, 16) and overlap is 0.5; allowed is one of them"),
        (["--out", "heat.gif"], "--out is heat.gif; allowed is a name that ends in .png"),
        (["--npz", "heat"], "--npz is heat; allowed is a name that ends in .npz"),
        (["--weights", "nowhere.pt"], "there is no file of weights nowhere.pt"),
        (["--model", "resnet19"], "torchvision has no classification model 'resnet19': did you mean resnet18"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    options: list[str], message: str, run: Run, picture: Path, tmp_path: Path
) -> None:
    result = run("explain", picture, *QUICK, "--out", tmp_path / "h.png", "--npz", tmp_path / "h.npz", *options)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("h.*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--value", "blur:wide"], "--value is 'blur:wide'"),
        (["--stride", "0"], "stride is (0, 0)"),
        (["--tau", "7"], "tau is 7.0"),
        (["--value", "nan"], "value is nan; allowed are numbers, not NaN"),
        (["--patch", "0"], "patch_shape is (0, 0)"),
        (["--correct", "9", "--share", "0.1"], "correct is 9, and no score needs it"),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(
    options: list[str], message: str, run: Run, picture: Path, tmp_path: Path
) -> None:
    result = run("explain", picture, "--model", "no.such:model", "--out", tmp_path / "h.png", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def test_a_cut_at_the_end_alone_is_refused(run: Run, picture: Path, tmp_path: Path) -> None:
    result = run("explain", picture, *QUICK, "--out", tmp_path / "h.png", "--cut", "1.0")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --cut 1.0: nothing is approximated by this")
    result = run("explain", tmp_path / "no.png", "--model", "no.such:model", "--out", tmp_path / "h.png")
    assert result.stderr.startswith(f"error: there is no picture {tmp_path / 'no.png'}")


def test_the_picture_is_not_overwritten(run: Run, picture: Path, tmp_path: Path) -> None:
    before = picture.read_bytes()
    result = run("explain", picture, *QUICK, "--out", picture, "--npz", tmp_path / "h.npz")
    assert result.exit_code == 2
    assert "would be overwritten" in result.stderr
    assert picture.read_bytes() == before


def test_files_go_into_new_folders(run: Run, picture: Path, tmp_path: Path) -> None:
    result = run("explain", picture, *QUICK, "--out", tmp_path / "new/a.png", "--npz", tmp_path / "other/b.npz")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new/a.png").exists()
    assert (tmp_path / "other/b.npz").exists()
    result = run("explain", picture, *QUICK, "--out", picture / "a.png", "--npz", tmp_path / "b.npz")
    assert result.exit_code == 2
    assert "can't make the folder" in result.stderr


def test_a_memory_budget(run: Run, picture: Path) -> None:
    options = ("-m", LESIONS, "--size", 64, "--stride", 16, "--memory-budget")
    assert run("explain", picture, *options, "64MB").exit_code == 0
    few = run("explain", picture, *options, "10 KB")
    assert few.exit_code == 2
    assert "error: memory_budget is 10,240 bytes; one base image and a query of it takes" in few.output
    for wrong in ("much", "-5", "0"):
        refused = run("explain", picture, *options, wrong)
        assert refused.exit_code == 2
        assert "budget is" in refused.output
