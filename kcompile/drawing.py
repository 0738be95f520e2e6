"""Pictures of heat maps, with matplotlib's object interface: no global state, no display."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kcompile.core.errors import InputError

if TYPE_CHECKING:
    from kcompile.heatmap import FloatArray, Heatmap

# Blue to red through pale tones, so that both ends stand out on grey pictures, dark or light.
COLOURS = LinearSegmentedColormap.from_list(
    "kcompile", ["#1b3fd6", "#3f8efc", "#a9d3ff", "#ececec", "#ffd27a", "#ff8a1f", "#d8152f"]
)
OPAQUE = 0.72  # of the strongest attribution, over an image
FAINT = 0.04  # share of the strongest attribution below which nothing is drawn over an image
INK = "#00e5a8"  # outline and scale, a colour that is in neither the map nor most pictures


def draw(heat: Heatmap, image: Any, title: str | None, outline: Any = None) -> Figure:
    """Draw a heat map: red where the patch lowers the score, blue where it raises it.

    With an image there are two panels, the image with the patch's size and the attribution laid over the image; without
    one the attribution alone.

    Args:
        heat: The map.
        image: [H, W], [H, W, 3] or [3, H, W], values in 0 … 1 or 0 … 255; None for none.
        title: Above the picture; None names target and score.
        outline: [H, W], true inside a shape whose border is drawn (a known lesion).

    Returns:
        The figure; ``figure.axes[-2]`` has the attribution, ``figure.axes[-1]`` the colour bar.

    Raises:
        InputError: A map that has not two axes, or an image or outline of a wrong shape.
    """
    if len(heat.image_shape) != 2:
        raise InputError(
            f"a map of {len(heat.image_shape)} axes can't be drawn, only one of two: use heat.attribution()"
        )
    if outline is not None and np.shape(outline) != heat.image_shape:
        raise InputError(f"the outline has shape {np.shape(outline)}; the map is of a {heat.image_shape} image")
    panels = 1 if image is None else 2
    figure = Figure(figsize=(4.4 * panels + 0.9, 4.7), layout="constrained")
    FigureCanvasAgg(figure)
    shown = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    height, width = heat.image_shape
    for axes in shown:
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        axes.set_axis_off()
        if image is not None:
            axes.imshow(
                _fitting(picture(image), heat.image_shape), extent=(0, width, height, 0), interpolation="nearest"
            )
        if outline is not None:
            _outline(axes, np.asarray(outline, dtype=float))
    if image is not None:
        _scale(shown[0], heat)
    _attribution(figure, shown[-1], heat, over_image=image is not None)
    caption = heat.caption if title is None else f"{title}{heat.notes}"
    lines = [wrapped for line in caption.split("\n") for wrapped in textwrap.wrap(line, 56 * panels) or [""]]
    figure.suptitle("\n".join(lines), fontsize=11 if len(lines) < 3 else 9)
    return figure


def _fitting(image: np.ndarray[Any, Any], size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The picture, unless it can't be that of the map: smaller, or of other proportions."""
    (rows, columns), (height, width) = image.shape[:2], size
    if min(rows / height, columns / width) < 1 or abs(rows * width / height - columns) > 1 + rows / height:
        raise InputError(
            f"the picture is {rows}×{columns}, the map of a {height}×{width} image; allowed are that size and larger "
            "ones of the same proportions"
        )
    return image


def _attribution(figure: Figure, axes: Axes, heat: Heatmap, over_image: bool) -> None:
    values = heat.attribution()
    known = values[np.isfinite(values)]
    limit = float(np.abs(known).max()) if known.size and known.any() else 1.0
    alpha = _alpha(values / limit) if over_image else np.isfinite(values).astype(float)
    height, width = heat.image_shape
    extent = (0, width, height, 0)
    axes.imshow(values, cmap=COLOURS, vmin=-limit, vmax=limit, alpha=alpha, extent=extent, zorder=1.5)
    solid = axes.imshow(values, cmap=COLOURS, vmin=-limit, vmax=limit, visible=False, extent=extent)
    bar = figure.colorbar(solid, ax=axes, shrink=0.9, aspect=28, pad=0.02)
    bar.set_label(f"drop of the {heat.score}, mean over patches that cover a pixel", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if known.size and known.any():  # one side of the scale alone, where the map has nothing on the other
        low, high = float(known.min()), float(known.max())
        bar.ax.set_ylim(min(low, -FAINT * limit), max(high, FAINT * limit))


def _alpha(relative: FloatArray) -> FloatArray:
    """Opacity by strength: nothing below `FAINT`, then quickly visible."""
    strength = np.clip((np.abs(np.nan_to_num(relative)) - FAINT) / (1 - FAINT), 0, 1)
    return np.asarray(OPAQUE * strength**0.5)


def _outline(axes: Axes, shape: FloatArray) -> None:
    if not 0 < shape.sum() < shape.size:
        return  # no border
    centres = (np.arange(size) + 0.5 for size in shape.shape[::-1])
    axes.contour(*centres, shape, levels=[0.5], colors=[INK], linewidths=1.3, zorder=3)


def _scale(axes: Axes, heat: Heatmap) -> None:
    """The patch's size, in the corner."""
    (height, width), margin = heat.patch_shape, 0.03 * heat.image_shape[1]
    corner = (margin, heat.image_shape[0] - margin - height)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=INK, linewidth=1.3))
    label = f"{height} × {width} px patch"
    axes.text(corner[0] + width + margin, corner[1] + height / 2, label, color=INK, fontsize=8, va="center")


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
    if low < -0.1 or high > 255:
        array = (array - low) / ((high - low) or 1.0)  # a normalised image: stretch it
    elif high > 2:  # resizing can overshoot 1 a little
        array = array / 255
    array = array.clip(0, 1)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
