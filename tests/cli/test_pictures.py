"""Every kind of picture file becomes what the model takes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from kcompile.core.errors import InputError
from kcompile.pictures import read_picture

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [102, 102, 102]], [[0, 0, 0], [255, 255, 255]]], np.uint8)


def read(path: Path, channels: int = 3) -> Tensor:
    """As a tensor [C, H, W] in 0 … 1, as the models' transforms make it."""
    picture = read_picture(path, channels)
    return picture if isinstance(picture, Tensor) else to_tensor(picture)


def expected(colours: np.ndarray) -> Tensor:
    return torch.from_numpy(colours).permute(2, 0, 1) / 255


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "CMYK"])
def test_colour_is_kept_in_every_mode(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(COLOURS).convert(mode).save(path)
    assert torch.equal(read(path), expected(COLOURS))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_is_repeated_for_colour_models_and_single_for_grey_ones(mode: str, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert(mode).save(tmp_path / "a.png")
    grey = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert torch.equal(read(tmp_path / "a.png"), grey.expand(3, 2, 2))
    assert torch.equal(read(tmp_path / "a.png", channels=1), grey[None])


def test_colour_becomes_grey_for_grey_models(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    grey = read(tmp_path / "a.png", channels=1)
    assert grey.shape == (1, 3, 2)
    assert 0 < grey[0, 0, 0] < grey[0, 0, 1] < 1  # red is darker than green


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_not_cut_to_eight(suffix: str, tmp_path: Path) -> None:
    levels = np.array([[0, 1, 2], [256, 40000, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    wanted = torch.from_numpy(levels.astype(np.float32) / 65535)
    assert torch.equal(read(tmp_path / f"a.{suffix}"), wanted.expand(3, 2, 3))
    assert read(tmp_path / f"a.{suffix}", channels=1).shape == (1, 2, 3)


def test_floats_in_the_unit_range_are_taken_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.123, 1.0]], np.float32)).save(tmp_path / "a.tif")
    assert torch.equal(read(tmp_path / "a.tif")[0], torch.tensor([[0.0, 0.123, 1.0]]))


@pytest.mark.parametrize("values", [[0.0, 1.5], [-0.1, 0.5], [0.0, float("nan")]])
def test_floats_outside_are_refused_with_their_range(values: list[float], tmp_path: Path) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif has values .* allowed are 0 … 1"):
        read_picture(tmp_path / "a.tif")


def test_transparent_pixels_become_white_whatever_hides_below(tmp_path: Path) -> None:
    hidden = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8)
    Image.fromarray(hidden).save(tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png"), expected(np.array([[[255, 255, 255], [10, 20, 30]]], np.uint8)))


def test_a_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([9, 9, 9, 50, 60, 70])
    picture.save(tmp_path / "a.png", transparency=0)
    assert torch.equal(read(tmp_path / "a.png"), expected(np.array([[[255, 255, 255], [50, 60, 70]]], np.uint8)))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(COLOURS, -1).copy()
    assert torch.equal(read(tmp_path / "a.png"), expected(turned))


def test_bad_files_are_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    for name, message in (
        ("text.png", "is not a picture"),
        ("missing.png", "there is no picture"),
        ("cut.png", "can't be read"),
        ("", "can't be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_picture(tmp_path / name)


def test_pictures_beyond_all_measure_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(InputError, match="too large"):
        read_picture(tmp_path / "a.png")


def test_models_of_other_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes 4 channels"):
        read_picture(tmp_path / "a.png", channels=4)
