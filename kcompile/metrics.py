"""How much an approximate map is like the exact one: structural similarity, on scores and on rendered pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kcompile.core.errors import InputError

FloatArray = npt.NDArray[np.floating[Any]]

WINDOW = 7  # cells per axis, scikit-image's default; smaller maps take the largest odd window that fits
FLAT = 1e-4  # share of the largest score below which a map's range is rounding (the bound for float32 maps)
SLACK = 1e-2  # share of the largest score by which a constant map may be off before its similarity is 0


def similarity(exact: Any, approximate: Any) -> float:
    """SSIM (Wang et al. 2004, by scikit-image) of two maps of raw scores, with the exact map's range as data range.

    Take logits or log-probabilities: saturated probabilities give constant maps. SSIM of a constant map means nothing,
    so a map whose range is at most 1e-4 of its largest score is judged by the largest absolute error instead:
    ``max(0, 1 - error / (1e-2 * largest score))``, so that a similarity of 0.9 allows an error of 1e-3 of the largest
    score.

    Args:
        exact: [rows, cols] (or another number of axes), finite.
        approximate: The same shape, finite.

    Returns:
        -1 … 1, and 1 for equal maps.

    Raises:
        InputError: Other shapes, fewer than three cells along an axis, or values that are not finite (a partial map).
    """
    from skimage import metrics

    exact, approximate = _checked(exact, approximate)
    largest, spread = float(np.abs(exact).max()), float(exact.max() - exact.min())
    if spread <= FLAT * largest:
        error = float(np.abs(approximate - exact).max())
        return 1.0 if error == 0 else max(0.0, 1 - error / (SLACK * largest)) if largest else 0.0
    return float(metrics.structural_similarity(exact, approximate, win_size=_window(exact.shape), data_range=spread))


def rendered_similarity(exact: Any, approximate: Any) -> float:
    """SSIM of the two maps rendered with matplotlib's ``jet_r``, as in Krypton's figures: to compare with the paper.

    Both are rendered over the exact map's range; values beyond it get the colours at its ends.

    Args:
        exact: [rows, cols], finite.
        approximate: The same shape, finite.

    Returns:
        -1 … 1, the mean over the three colours.

    Raises:
        InputError: As for `similarity`, or maps that have not two axes.
    """
    from matplotlib import colormaps
    from skimage import metrics

    exact, approximate = _checked(exact, approximate)
    if exact.ndim != 2:
        raise InputError(f"a map of shape {exact.shape} can't be rendered; allowed is [rows, cols]")
    low, spread = float(exact.min()), float(exact.max() - exact.min())
    if spread == 0:
        return similarity(exact, approximate)
    pictures = [colormaps["jet_r"]((values - low) / spread)[..., :3] for values in (exact, approximate)]
    window = _window(exact.shape)
    return float(metrics.structural_similarity(*pictures, win_size=window, data_range=1.0, channel_axis=2))


def _checked(exact: Any, approximate: Any) -> tuple[FloatArray, FloatArray]:
    maps = np.asarray(exact, dtype=np.float64), np.asarray(approximate, dtype=np.float64)
    if maps[0].shape != maps[1].shape or not maps[0].ndim or min(maps[0].shape) < 3:
        raise InputError(
            f"maps of shapes {maps[0].shape} and {maps[1].shape} can't be compared; allowed are two of the same shape "
            "with at least 3 cells per axis"
        )
    for name, values in zip(("exact", "approximate"), maps, strict=True):
        if missing := int((~np.isfinite(values)).sum()):
            raise InputError(f"the {name} map has {missing} scores that are not finite; allowed are complete maps")
    return maps


def _window(shape: tuple[int, ...]) -> int:
    return min(WINDOW, *(size - (size + 1) % 2 for size in shape))
