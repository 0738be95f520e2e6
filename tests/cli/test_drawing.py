"""Pictures of heat maps."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kcompile import Heatmap, InputError
from kcompile.drawing import draw, picture
from kcompile.grid import grid


def heat_map(drops: NDArray[Any]) -> Heatmap:
    """A map of one class on a 24 x 32 image, patch 8, stride 8."""
    scores = (0.9 - drops)[..., None].astype(np.float32)
    return Heatmap(scores, np.array([0.9]), 0, grid((24, 32), (8, 8), 8), (8, 8), (24, 32), "probability")


def pixels(heat: Heatmap, image: Any, outline: Any = None) -> NDArray[np.uint8]:
    """Of the whole figure, [rows, cols, 3]."""
    figure = draw(heat, image, None, outline)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def coloured(rendered: NDArray[np.uint8], first: int, second: int) -> int:
    """How many pixels have clearly more of one colour channel than of another."""
    wide = rendered.astype(int)
    return int((wide[:, : wide.shape[1] * 4 // 5, first] > wide[:, : wide.shape[1] * 4 // 5, second] + 60).sum())


def test_drops_are_red_and_rises_blue() -> None:
    drops = np.zeros((3, 4))
    drops[1, 1] = 0.5
    assert coloured(pixels(heat_map(drops), np.zeros((24, 32))), 0, 2) > 1000
    assert coloured(pixels(heat_map(drops), np.zeros((24, 32))), 2, 1) == 0
    assert coloured(pixels(heat_map(-drops), np.zeros((24, 32))), 2, 1) > 1000


def test_the_colour_bar_has_only_the_side_that_the_map_uses() -> None:
    drops = np.full((3, 4), 0.1)
    drops[0, 0] = 0.4
    low, high = draw(heat_map(drops), None, None).axes[-1].get_ylim()
    assert low > -0.02
    assert high == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize("image", [None, np.zeros((24, 32)), np.zeros((3, 24, 32)), np.zeros((24, 32, 3), np.uint8)])
def test_flat_and_empty_maps_are_drawn_without_warnings(image: Any) -> None:
    for value in (0.0, np.nan):
        assert pixels(heat_map(np.full((3, 4), value)), image).size


def test_the_outline_follows_the_mask() -> None:
    mask = np.zeros((24, 32), bool)
    without = pixels(heat_map(np.zeros((3, 4))), np.zeros((24, 32)), mask)
    mask[4:12, 8:20] = True
    drawn = pixels(heat_map(np.zeros((3, 4))), np.zeros((24, 32)), mask)
    assert coloured(drawn, 1, 0) > coloured(without, 1, 0) + 500
    with pytest.raises(InputError, match="outline has shape"):
        draw(heat_map(np.zeros((3, 4))), None, None, mask.T)


def test_pictures_of_any_range_and_layout() -> None:
    grey = np.linspace(0, 1, 12).reshape(3, 4)
    for image in (grey, grey * 255, np.stack([grey] * 3), grey[None, None], 5 * grey - 2.5):
        assert np.allclose(picture(image), np.repeat(grey[..., None], 3, axis=-1))
    with pytest.raises(InputError, match="can't be drawn"):
        picture(np.zeros((2, 5, 5)))


def test_a_picture_a_little_beyond_white_stays_bright() -> None:
    """Resizing overshoots: 1.000001 was once taken for the scale 0 … 255, and the overlay came out black."""
    white = np.full((8, 8, 3), 1.000001)
    assert picture(white).min() == 1.0
    assert picture(np.full((8, 8), 255.0)).min() == 1.0
    assert picture(np.full((8, 8), 128.0)).max() == pytest.approx(128 / 255)
