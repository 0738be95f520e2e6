"""Images as a user gives them to `kcompile.occlusion`: one, a list, a batch, or all inputs of a model with several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kcompile.api import incrementalize
from kcompile.core.checks import per_axis
from kcompile.core.errors import InputError
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule

PATCH = 16  # pixels, where a plain model comes without a patch shape


def compiled(
    model: nn.Module, image: Any, patch_shape: int | Sequence[int] | None, memory_budget: int | None = None
) -> IncrementalModule:
    """The model, compiled for images like the first one if it is a plain model.

    Five dimensions, or a patch of as many numbers, tell other axes than two.

    Raises:
        InputError: No image tensor of a plain model; and what `incrementalize` raises.
    """
    if isinstance(model, IncrementalModule):
        if memory_budget is not None:
            raise InputError(
                f"memory_budget is {memory_budget!r}, but the model is compiled already: set inc.memory_budget"
            )
        return model
    if isinstance(image, dict):
        raise InputError(
            "the image is a dict: compile a model with several inputs first, by kcompile.incrementalize(model, "
            "example_inputs=…)"
        )
    first = image[0] if isinstance(image, (list, tuple)) and image else image
    five = isinstance(first, Tensor) and first.dim() == 5
    sizes: Any = patch_shape
    axes = len(sizes) if hasattr(sizes, "__len__") else 3 if five else 2
    if not isinstance(first, Tensor) or first.dim() not in (axes + 1, axes + 2):
        names = {1: "L", 2: "H, W", 3: "D, H, W"}.get(axes, "*S")
        found = f"{type(first).__name__} {tuple(first.shape) if hasattr(first, 'shape') else ''}".rstrip()
        raise InputError(f"the image must be a tensor [C, {names}], [B, C, {names}] or a list of such, got {found}")
    patch = per_axis(PATCH if patch_shape is None else patch_shape, axes, "patch_shape")
    return incrementalize(model, (1, *first.shape[-axes - 1 :]), patch, memory_budget=memory_budget)


def as_images(image: Any, inc: IncrementalModule) -> tuple[list[Given], bool]:
    """What a user gave, image by image, all checked before the first is explained; and whether it was a single one.

    Args:
        image: A tensor [C, *S] or [B, C, *S], or a list (or tuple) of such. Of a model with several inputs: a tuple of
            its arguments or a dict of them by name, for one image or for a batch, or a list of such.
        inc: The compiled module.

    Raises:
        InputError: An empty list, or something that the module was not compiled for.
    """
    listed = isinstance(image, list) or (inc.inputs.single and isinstance(image, tuple))
    if not listed:
        rows = split(_read(image, inc))
        return rows, len(rows) == 1
    if not image:
        raise InputError("the image is an empty list")
    found = []
    for index, one in enumerate(image):
        try:
            rows = split(_read(one, inc))
        except InputError as error:
            raise InputError(f"image {index} of the list: {error}") from error
        if len(rows) != 1:
            raise InputError(f"image {index} of the list is a batch of {len(rows)}; allowed is one image each")
        found += rows
    return found, False


def split(given: Given) -> list[Given]:
    """The inputs of a batch, row by row."""
    rows = [tuple(tensor[i : i + 1].detach() for tensor in given.rows) for i in range(len(given.rows[0]))]
    return [Given(row, given.whole) for row in rows]


def _read(image: Any, inc: IncrementalModule) -> Given:
    if inc.inputs.single:
        return inc.read(image)
    if isinstance(image, dict):
        return inc.read(**image)
    return inc.read(*image) if isinstance(image, tuple) else inc.read(image)
