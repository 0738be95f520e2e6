"""Procedural retina scans (OCT B-scans) of four classes, with the lesion's ground truth.

A picture is a function of its label and seed alone. Pictures of one seed share the retina, the noise and the lesion's
column whatever their label is: `generate("fluid", 7)` and `generate("normal", 7)` are the same eye with and without the
lesion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.lesions.anatomy import SIDE, Anatomy, Array, draw_anatomy, smooth_noise, step
from examples.lesions.pathology import PAINTERS, draw_column

CLASSES = tuple(PAINTERS)
SEEDS_PER_SET = 1_000_000
SHIPPED_SEED = 1_000_071  # fluid.png and fluid_mask.png are generate("fluid", SHIPPED_SEED)


@dataclass(frozen=True)
class Sample:
    """One picture and what is in it.

    Attributes:
        image: float32 [3, 224, 224] in [0, 1]; the three channels are the same grey.
        mask: bool [224, 224], the lesion's pixels; empty for "normal".
        label: Index into `CLASSES`.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    label: int


def generate(label: int | str, seed: int) -> Sample:
    """Make one picture.

    Args:
        label: Name of a class or its index in `CLASSES`.
        seed: Any integer >= 0.

    Raises:
        ValueError: No such class.
    """
    index = _index(label)
    eye, draw, texture, finish = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    anatomy = draw_anatomy(eye)
    picture, mask = PAINTERS[CLASSES[index]](anatomy, draw_column(draw), draw, texture)
    grey = _acquire(picture, anatomy, finish).astype(np.float32)
    return Sample(np.repeat(grey[None], 3, axis=0), mask, index)


def dataset(n: int, seed: int) -> Iterator[Sample]:
    """Yield `n` pictures of distinct eyes, the classes in turn; sets of different seeds share no eye.

    Raises:
        ValueError: `n` is outside 0 .. 1,000,000.
    """
    if not 0 <= n <= SEEDS_PER_SET:
        raise ValueError(f"n is {n}; a set has 0 to {SEEDS_PER_SET} pictures")
    return (generate(i % len(CLASSES), seed * SEEDS_PER_SET + i) for i in range(n))


def save_picture(array: NDArray[np.float32] | NDArray[np.bool_], path: str | Path) -> None:
    """Write an image ([3, H, W] or [H, W] in [0, 1]) or a mask (bool [H, W]) as an 8-bit PNG."""
    grey = array[0] if array.ndim == 3 else array
    levels = np.rint(np.clip(grey.astype(np.float64), 0.0, 1.0) * 255).astype(np.uint8)
    Image.fromarray(levels).save(path, optimize=True)


def _index(label: int | str) -> int:
    if isinstance(label, str) and label in CLASSES:
        return CLASSES.index(label)
    if isinstance(label, int) and 0 <= label < len(CLASSES):
        return label
    raise ValueError(f"label is {label!r}; allowed are {', '.join(CLASSES)} or 0 to {len(CLASSES) - 1}")


def _acquire(picture: Array, anatomy: Anatomy, rng: np.random.Generator) -> Array:
    """What the scanner adds: vessel shadows, uneven light, multiplicative speckle, sensor noise, gain and contrast."""
    picture = _vessels(picture, anatomy, rng)
    picture = picture * (1 + 0.06 * smooth_noise(rng, (SIDE,), (30.0,)))[None, :]
    strength, grain = rng.uniform(0.16, 0.26), rng.uniform(0.5, 0.9)
    speckle = np.exp(strength * smooth_noise(rng, (SIDE, SIDE), (grain, 1.3 * grain)))
    picture = picture * speckle + rng.uniform(0.012, 0.03) * rng.standard_normal((SIDE, SIDE))
    contrast = np.clip(picture, 0.0, None) ** rng.uniform(0.85, 1.2)
    return np.clip(rng.uniform(0.85, 1.1) * contrast + rng.uniform(0.0, 0.05), 0.0, 1.0)


def _vessels(picture: Array, anatomy: Anatomy, rng: np.random.Generator) -> Array:
    """Two to five blood vessels in the inner retina: a small bright spot, and a shadow on all that lies under it."""
    height, surface = anatomy.height, anatomy.top("nerve fibres")
    for _ in range(rng.integers(2, 6)):
        column, radius, depth = rng.uniform(0, SIDE), rng.uniform(1.5, 3.5), rng.uniform(0.15, 0.45)
        level = np.interp(column, np.arange(SIDE), surface) - radius - 3
        across = np.exp(-(((np.arange(SIDE) - column) / radius) ** 2))[None, :]
        picture = picture + 0.2 * across * np.exp(-(((height - level) / radius) ** 2))
        picture = picture * (1 - depth * across * step(level - height, 5.0))
    return picture
