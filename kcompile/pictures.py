"""Pictures from files: any format that PIL reads, 8-bit or deeper, in any colour mode."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kcompile.core.errors import InputError

Picture: TypeAlias = "Image.Image | Tensor"
"""A PIL image (8 bits per channel) or, for deeper files, float32 [C, H, W] in 0 … 1."""


def read_picture(path: str | Path, channels: int = 3) -> Picture:
    """Read a picture as the right way up, in the colours that a model takes.

    Grey pictures are repeated for three channels, colour becomes grey for one. Transparent pixels become white. 16-bit
    grey is divided by 65535; floats must lie in 0 … 1. Of files with several frames the first is taken.

    Args:
        path: The file.
        channels: 1 or 3, the model's.

    Raises:
        InputError: No such file, not a picture, damaged, too large, or values out of range.
    """
    if channels not in (1, 3):
        raise InputError(f"the model takes {channels} channels; a picture file has 1 or 3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                picture.load()
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture that PIL can read (PNG, JPEG, TIFF, …)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} is too large: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"there is no picture {path}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return _deep(picture, path).expand(channels, -1, -1)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return picture.convert("RGB" if channels == 3 else "L")


def _deep(picture: Image.Image, path: str | Path) -> Tensor:
    """Integers of up to 16 bits, or floats in 0 … 1, as float32 [1, H, W]."""
    values = np.asarray(picture).astype(np.float32)
    top = 1.0 if picture.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= top):  # NaN too
        raise InputError(f"{path} has values {low:g} … {high:g}; allowed are 0 … {top:g}: rescale it first")
    return torch.from_numpy(values / top)[None]
