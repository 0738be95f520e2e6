"""How well a heat map finds a lesion whose true mask is known."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Localisation(NamedTuple):
    """How much of a heat map lies on the lesion.

    Attributes:
        share: Positive attribution in the dilated mask over all positive attribution, 0 to 1.
        area: Pixels of the dilated mask over all pixels, 0 to 1.
        ratio: share / area; 1 is what a heat map that knows nothing gets.
    """

    share: float
    area: float
    ratio: float


def dilate(mask: NDArray[np.bool_], patch: int | tuple[int, int]) -> NDArray[np.bool_]:
    """Grow a mask [H, W] to all pixels that a patch (size, or height and width) touching the mask can cover."""
    grown = mask
    for axis, size in enumerate(_pair(patch)):
        margin = [(size - 1, size - 1) if a == axis else (0, 0) for a in range(2)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(grown, margin), 2 * size - 1, axis=axis)
        grown = np.asarray(windows.any(axis=-1))
    return grown


def localisation(
    attribution: NDArray[np.floating], mask: NDArray[np.bool_], patch: int | tuple[int, int]
) -> Localisation:
    """Compare the heat on the lesion with the lesion's area.

    Occlusion smears a lesion by up to one patch, hence the dilation. Pixels without an attribution (NaN, no window
    covered them) count neither as heat nor as area. A map without any positive attribution has share 0.

    Args:
        attribution: [H, W], what hiding a pixel costs the predicted class; NaN where unknown.
        mask: [H, W], the lesion.
        patch: Size of the occluding patch in pixels, or (height, width).

    Raises:
        ValueError: The shapes differ, the mask is empty, or no pixel has an attribution.
    """
    if attribution.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"attribution is {attribution.shape} and mask is {mask.shape}; both must be the same [H, W]")
    known = ~np.isnan(attribution)
    lesion = dilate(mask, patch) & known
    if not lesion.any():
        raise ValueError("no pixel with an attribution lies near the mask; is the mask empty (a normal picture)?")
    heat = np.where(known, np.maximum(attribution, 0), 0.0)
    area = float(lesion.sum() / known.sum())
    share = float(heat[lesion].sum() / heat.sum()) if heat.any() else 0.0
    return Localisation(share, area, share / area)


def _pair(patch: int | tuple[int, int]) -> tuple[int, int]:
    return (patch, patch) if isinstance(patch, int) else patch
