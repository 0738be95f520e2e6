"""The healthy retina of a procedural OCT B-scan: layer thicknesses per column, and how to paint them.

A B-scan is a vertical cut: dark vitreous on top, then the retina's bands, then the choroid. Everything is told in
pixels *above Bruch's membrane* (the floor that the retina lies on), so that curving, tilting or shifting the floor
moves all bands along.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SIDE = 224
VITREOUS_TONE = 0.05
CHOROID_TONE = 0.55

# From the floor up: thickness outside the fovea (pixels), the share of it left in the fovea's centre, tone in [0, 1].
# The proportions follow textbook scans (inner bands vanish in the fovea, the outer nuclear one grows); the numbers are
# set by eye.
LAYERS: dict[str, tuple[float, float, float]] = {
    "deposit": (0.0, 1.0, 0.50),
    "pigment epithelium": (5.0, 1.0, 0.85),
    "outer segments": (2.5, 1.2, 0.50),
    "ellipsoid zone": (2.5, 1.0, 0.78),
    "outer nuclear": (19.0, 1.35, 0.25),
    "outer plexiform": (4.0, 0.5, 0.52),
    "inner nuclear": (9.0, 0.25, 0.33),
    "ganglion cells": (16.0, 0.1, 0.53),
    "nerve fibres": (6.0, 0.1, 0.82),
}
LAYER_NAMES = tuple(LAYERS)


@dataclass(frozen=True)
class Anatomy:
    """A retina before painting.

    Attributes:
        floor: Row of Bruch's membrane per column, [224], pixels.
        thickness: Thickness of each band of `LAYERS`, from the floor up, [9, 224], pixels.
    """

    floor: Array
    thickness: Array

    @property
    def height(self) -> Array:
        """Pixels above the floor per pixel, [224, 224]; negative in the choroid."""
        return self.floor[None, :] - np.arange(SIDE)[:, None]

    def top(self, layer: str) -> Array:
        """Upper edge of a band, pixels above the floor per column, [224]."""
        edges: Array = self.thickness[: LAYER_NAMES.index(layer) + 1].sum(axis=0)
        return edges

    def thicken(self, layer: str, amount: Array) -> "Anatomy":
        """Return an anatomy with one band thicker by `amount` pixels per column, [224], and no band thinner than 0."""
        thickness = self.thickness.copy()
        row = LAYER_NAMES.index(layer)
        thickness[row] = np.maximum(thickness[row] + amount, 0.0)
        return Anatomy(self.floor, thickness)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, ...]) -> Array:
    """Gaussian noise of unit variance and mean 0, blurred by a Gaussian of `sigma` pixels per axis.

    The blur is a product in Fourier space, so the noise is periodic; nobody sees that in a texture.
    """
    spectrum = np.fft.fftn(rng.standard_normal(shape))
    for axis, (size, width) in enumerate(zip(shape, sigma, strict=True)):
        transfer = np.exp(-2.0 * (np.pi * np.fft.fftfreq(size) * width) ** 2)
        spectrum = spectrum * transfer.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    noise: Array = np.fft.ifftn(spectrum).real
    noise -= noise.mean()
    noise /= noise.std()
    return noise


def step(distance: Array, softness: float = 1.5) -> Array:
    """A soft edge: 0 below, 1 above, linear over `softness` pixels around distance 0."""
    return np.clip(distance / softness + 0.5, 0.0, 1.0)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a healthy retina: a shifted, tilted, bowed, wavy floor, the bands, a foveal dip that may lie outside."""
    columns = np.linspace(-0.5, 0.5, SIDE)
    floor = 152 + rng.uniform(-16, 16) + rng.uniform(-26, 26) * columns
    floor = floor + rng.uniform(-14, 26) * 4 * (columns**2 - 1 / 12) + 0.9 * smooth_noise(rng, (SIDE,), (14.0,))
    dip = rng.uniform(0.7, 1.0) * np.exp(-(((columns - rng.uniform(-0.65, 0.65)) / rng.uniform(0.10, 0.17)) ** 2))
    scale = rng.uniform(0.88, 1.14) * rng.uniform(0.9, 1.1, (len(LAYERS), 1))
    ripple = 1 + 0.05 * np.stack([smooth_noise(rng, (SIDE,), (16.0,)) for _ in LAYERS])
    outside, centre, _ = np.array(list(LAYERS.values())).T
    thickness = outside[:, None] * (1 + (centre[:, None] - 1) * dip) * scale * ripple
    # Nerve fibres gather towards the optic disc, which lies beyond one side or the other.
    thickness[LAYER_NAMES.index("nerve fibres")] *= 1 + rng.uniform(-0.9, 0.9) * columns
    return Anatomy(floor, thickness)


def paint(anatomy: Anatomy, rng: np.random.Generator) -> Array:
    """Paint the bands and the choroid without speckle, [224, 224] in [0, 1]."""
    height = anatomy.height
    tones = [tone for _, _, tone in LAYERS.values()] + [VITREOUS_TONE]
    picture = np.full((SIDE, SIDE), VITREOUS_TONE)
    for row, edge in enumerate(np.cumsum(anatomy.thickness, axis=0)):
        picture += (tones[row] - tones[row + 1]) * step(edge - height)
    picture *= 1 + 0.07 * smooth_noise(rng, (SIDE, SIDE), (1.5, 9.0))
    picture += step(-height) * (_choroid(height, rng) - picture)
    return picture


def _choroid(height: Array, rng: np.random.Generator) -> Array:
    """The vessel-rich tissue under the retina: fades with depth, with dark lumina, [224, 224]."""
    fading = np.exp(np.minimum(height, 0) / rng.uniform(28, 48))
    lumina = step(smooth_noise(rng, (SIDE, SIDE), (3.5, 6.0)) - 0.4, 0.8) * step(-height - 7, 6.0)
    tissue: Array = CHOROID_TONE * fading * (1 - 0.55 * lumina)
    return tissue
