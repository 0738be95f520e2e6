"""The three lesions: each changes a retina before painting or is painted onto it, and marks its own pixels.

* *drusen*: deposits under the pigment epithelium that lift it (and the bands on it) into one to three domes.
* *fluid*: one to three dark cysts inside the retina, which swells there.
* *membrane*: a choroidal neovascular membrane, a bright, mottled, ragged mass on the pigment epithelium that hides the
  thin bands above it.

They stand for DRUSEN, DME and CNV of the OCT data that Krypton was evaluated on (SIGMOD 2019, section 5). Shapes are
set by eye.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from examples.lesions.anatomy import SIDE, Anatomy, Array, paint, smooth_noise, step

Mask = NDArray[np.bool_]
Painted = tuple[Array, Mask]

_COLUMNS = np.arange(SIDE, dtype=np.float64)
_MARGIN = 18  # a lesion's centre stays this many pixels from the sides, so that most of it is in the picture


def draw_column(rng: np.random.Generator) -> float:
    """Draw the column of a lesion's centre: uniform over the width but for a margin."""
    return rng.uniform(_MARGIN, SIDE - _MARGIN)


def _dome(centre: float, half_width: float) -> Array:
    """A smooth dome of height 1 over `centre - half_width .. centre + half_width`, [224]."""
    return np.clip(1 - ((_COLUMNS - centre) / half_width) ** 2, 0.0, 1.0)


def _healthy(anatomy: Anatomy, column: float, draw: np.random.Generator, texture: np.random.Generator) -> Painted:
    return paint(anatomy, texture), np.zeros((SIDE, SIDE), dtype=np.bool_)


def _drusen(anatomy: Anatomy, column: float, draw: np.random.Generator, texture: np.random.Generator) -> Painted:
    """Domes beside each other; the outer nuclear band gives way to most of each dome's height."""
    lift = np.zeros(SIDE)
    side = draw.choice([-1.0, 1.0])
    for _ in range(draw.integers(1, 4)):
        half_width = draw.uniform(10, 17)
        lift = np.maximum(lift, draw.uniform(9, 16) * _dome(column, half_width))
        column += side * half_width * draw.uniform(1.2, 1.9)
    lifted = anatomy.thicken("deposit", lift).thicken("outer nuclear", -0.85 * lift)
    height = lifted.height
    mask = (lift > 2) & (height >= 0) & (height <= lifted.top("ellipsoid zone"))
    return paint(lifted, texture), mask


def _fluid(anatomy: Anatomy, column: float, draw: np.random.Generator, texture: np.random.Generator) -> Painted:
    """Dark ellipses with a faint bright rim between the photoreceptors and the inner surface."""
    across, along = draw.uniform(8.5, 12.5), draw.uniform(12, 20)
    swelling = 0.9 * across * np.exp(-(((_COLUMNS - column) / (1.5 * along)) ** 2))
    swollen = anatomy.thicken("outer nuclear", swelling)
    lowest, highest = (np.interp(column, _COLUMNS, swollen.top(name)) for name in ("ellipsoid zone", "nerve fibres"))
    middle = draw.uniform(lowest + across, max(lowest + across, highest - across - 5))
    distance = _ellipse(swollen, column, middle, along, across)
    for _ in range(draw.integers(0, 3)):
        aside = draw.choice([-1.0, 1.0]) * along * draw.uniform(0.9, 1.15)
        small = _ellipse(swollen, column + aside, middle + draw.uniform(-3, 3), draw.uniform(6, 9), draw.uniform(4, 7))
        distance = np.minimum(distance, small)
    picture = paint(swollen, texture)
    picture += 0.12 * np.exp(-(((distance - 1.5) / 1.5) ** 2))
    picture += step(-distance, 2.5) * (draw.uniform(0.05, 0.13) - picture)
    return picture, distance <= 0


def _ellipse(anatomy: Anatomy, column: float, middle: float, along: float, across: float) -> Array:
    """Approximate signed distance (pixels, negative inside) from an ellipse centred `middle` above the floor."""
    rows = (anatomy.height - middle) / across
    radius = np.hypot(rows, (_COLUMNS[None, :] - column) / along)
    return (radius - 1) * min(along, across)


def _membrane(anatomy: Anatomy, column: float, draw: np.random.Generator, texture: np.random.Generator) -> Painted:
    """A bright mass from inside the pigment epithelium up to a ragged outline."""
    ragged = 1 + 0.17 * smooth_noise(draw, (SIDE,), (3.0,))
    tall, dome = draw.uniform(14, 21), _dome(column, draw.uniform(15, 25))
    mass = np.maximum(tall * np.sqrt(dome) * ragged, 0.0)
    pushed = anatomy.thicken("outer nuclear", 0.2 * tall * dome)
    inside = np.minimum(mass[None, :] + 2 - pushed.height, pushed.height - 1)
    mottled = 0.80 + 0.09 * smooth_noise(draw, (SIDE, SIDE), (1.8, 2.6))
    picture = paint(pushed, texture)
    picture += (step(inside, 3.0) * (mass > 1)) * (mottled - picture)
    return picture, (inside >= 0) & (mass > 1)


PAINTERS: dict[str, Callable[[Anatomy, float, np.random.Generator, np.random.Generator], Painted]] = {
    "normal": _healthy,
    "drusen": _drusen,
    "fluid": _fluid,
    "membrane": _membrane,
}
