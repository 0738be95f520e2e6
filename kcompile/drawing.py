"""Pictures of heat maps, with matplotlib's object interface: no global state, no display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kcompile.core.errors import InputError

if TYPE_CHECKING:
    from kcompile.heatmap import Heatmap


def draw(heat: Heatmap, image: Any, title: str | None) -> Figure:
    """Attribution in red (the patch lowers the score) and blue (raises it), transparent where it changes nothing."""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height, width = heat.image_shape
    if image is not None:
        axes.imshow(picture(image), extent=(0, width, height, 0))
    values = heat.attribution()
    limit = float(np.nanmax(np.abs(values), initial=0.0)) if np.isfinite(values).any() else 0.0
    limit = limit or 1.0
    strength = np.clip(np.abs(np.nan_to_num(values)) / limit, 0, 1) ** 0.6
    alpha = 0.75 * strength if image is not None else np.where(np.isnan(values), 0.0, 1.0)
    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=alpha, extent=(0, width, height, 0))
    drawn.set_alpha(alpha)
    figure.colorbar(axes.images[-1], ax=axes, label=f"drop of the {heat.score} under the patch", alpha=1.0)
    axes.set_axis_off()
    note = "" if heat.complete else " (interrupted)"
    axes.set_title(title or f"class {heat.target}: {heat.score} {heat.base_score:.3g}{note}", fontsize=10)
    return figure


def picture(image: Any) -> np.ndarray[Any, Any]:
    """An image as [H, W, 3] in 0 … 1 (grey is repeated)."""
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image, dtype=np.float64)
    array = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise InputError(
            f"a picture of shape {array.shape} can't be drawn; allowed are [H, W], [H, W, 3] and [3, H, W]"
        )
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 255:
        array = (array - low) / ((high - low) or 1.0)  # a normalised image: stretch it
    elif high > 1:
        array = array / 255
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
