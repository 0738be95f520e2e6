"""Images as a user gives them to `kcompile.occlusion`: one, a list, or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kcompile.core.errors import InputError
from kcompile.runtime.module import IncrementalModule


def as_images(
    image: Any, model: nn.Module, patch_shape: int | Sequence[int] | None = None
) -> tuple[list[Tensor], bool]:
    """The images [C, *S] that a user gave, and whether it was a single one, not a list.

    Raises:
        InputError: No tensor, a wrong rank, an empty list, or images that differ in shape, type or device.
    """
    rank = _rank(image, model, patch_shape)
    if not isinstance(image, (list, tuple)):
        _check_rank(image, rank, "the image")
        if image.dim() == rank or len(image) == 1:
            return [image.detach().reshape(image.shape[-rank:])], True
        return list(image.detach()), False
    for index, one in enumerate(image):
        _check_rank(one, rank, f"image {index}", several=False)
    images = [one.detach().reshape(one.shape[-rank:]) for one in image]
    if not images:
        raise InputError("the image is an empty list")
    for index, one in enumerate(images):  # told now, not after the maps of those before it
        if (one.shape, one.dtype, one.device) != (images[0].shape, images[0].dtype, images[0].device):
            found, first = (f"{i.dtype} {tuple(i.shape)} on {i.device}" for i in (one, images[0]))
            raise InputError(f"image {index} is {found}, image 0 is {first}: the images of one call must be alike")
    return images, False


def _rank(image: Any, model: nn.Module, patch_shape: int | Sequence[int] | None) -> int:
    """Dimensions of an image without batch."""
    if isinstance(model, IncrementalModule):
        return len(model.plan.input_shape)
    if patch_shape is not None and hasattr(patch_shape, "__len__"):
        return len(patch_shape) + 1
    one = image[0] if isinstance(image, (list, tuple)) and len(image) else image
    return 4 if isinstance(one, Tensor) and one.dim() == 5 else 3


def _check_rank(image: Any, rank: int, name: str, several: bool = True) -> None:
    sizes = {2: "L", 3: "H, W", 4: "D, H, W"}.get(rank, "*S")
    if not isinstance(image, Tensor) or image.dim() not in (rank, rank + 1) or not len(image):
        shape = tuple(image.shape) if hasattr(image, "shape") else ""
        allowed = f"[C, {sizes}], [1, C, {sizes}]" + (f" or [B, C, {sizes}]" if several else "")
        raise InputError(f"{name} must be a tensor {allowed}, got {type(image).__name__} {shape}".rstrip())
    if not several and image.dim() > rank and len(image) > 1:
        raise InputError(f"{name} has shape {tuple(image.shape)}; in a list, each tensor is one image [C, {sizes}]")
