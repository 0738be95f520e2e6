"""Engine of the classes with other libraries' signatures: modules compiled at first use, and their queries.

Such a class explains whatever it is given; what can't be incremental runs in full, and the class says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from kcompile.api import incrementalize
from kcompile.core.errors import KCompileError, StaleWeightsError
from kcompile.core.interval import IntArray
from kcompile.runtime.module import IncrementalModule

IMAGES_AT_ONCE = 8  # base images; more of them take memory, and no batch gets fuller

Key: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
Patches: TypeAlias = Callable[[slice], Tensor]


class Engine:
    """A model and what it was compiled to.

    Attributes:
        model: A plain model, an `IncrementalModule`, or any other function of images.
        reason: Why the last request could not be incremental; None if it could.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        """Compile nothing yet."""
        self.model = model
        self.reason: str | None = None
        self._made: dict[Key, IncrementalModule | str] = {}

    def based(self, images: Tensor, patch: tuple[int, ...]) -> tuple[IncrementalModule, Any] | None:
        """A module for patches up to ``patch`` with these base images [B, C, *sizes], and what it returns for them."""
        found = self._module(images, patch)
        if isinstance(found, str):
            self.reason = found
            return None
        try:
            output = self._materialized(found, images)
        except KCompileError as error:
            self.reason = str(error)
            return None
        self.reason = None
        return found, output

    def at_once(self) -> int:
        """How many base images to ask for at a time."""
        given = self.model
        return given.most_bases(IMAGES_AT_ONCE) if isinstance(given, IncrementalModule) else IMAGES_AT_ONCE

    def _materialized(self, inc: IncrementalModule, images: Tensor) -> Any:
        try:
            return inc.materialize(images)
        except StaleWeightsError:
            if inc is self.model:
                raise
        inc.refresh()
        return inc.materialize(images)

    def _module(self, images: Tensor, patch: tuple[int, ...]) -> IncrementalModule | str:
        """The module, or why there is none."""
        if not isinstance(self.model, nn.Module):
            return f"the model is a {type(self.model).__name__}, not a torch.nn.Module"
        if not images.is_floating_point() or not 3 <= images.dim() <= 5:
            return f"the input has shape {tuple(images.shape)} and type {images.dtype}, not that of images"
        if torch.is_autocast_enabled(images.device.type):
            return "autocast is on"
        if not bool(torch.isfinite(images).all()):
            return "the images hold NaN or infinite values"
        if isinstance(self.model, IncrementalModule):
            return self.model if _fits(patch, self.model) else f"{patch} is larger than the compiled patch"
        key = (tuple(images.shape[1:]), patch, images.dtype, images.device)
        if key not in self._made:
            try:
                self._made[key] = incrementalize(self.model, tuple(images.shape), patch)
            except KCompileError as error:
                if any(part.training for part in self.model.modules()):
                    return str(error)  # not kept: it may be another mode's
                self._made[key] = str(error)
        return self._made[key]


def _fits(patch: tuple[int, ...], inc: IncrementalModule) -> bool:
    most = inc.plan.patch_shape
    return len(patch) == len(most) and all(size <= limit for size, limit in zip(patch, most, strict=True))


def outputs(
    inc: IncrementalModule, bases: int, positions: IntArray, patches: Tensor | Patches, nbytes: int
) -> Iterator[tuple[IntArray, IntArray, Any]]:
    """The model's outputs for every base image with a patch at every position.

    Args:
        inc: With its base images.
        bases: B, how many of them.
        positions: [P, axes].
        patches: One [C, *sizes] for all, or a function that gives [p, B, C, *sizes] for a part of the positions.
        nbytes: Size of one patch; patches are made for at most 64 MB of them at a time (less under a memory budget).

    Yields:
        Of a group of queries the indices of the positions and of the images, and the model's output.
    """
    at_once = len(positions) if isinstance(patches, Tensor) else max(1, inc.chunk_bytes() // (nbytes * bases))
    for first in range(0, len(positions), at_once):
        part = slice(first, min(first + at_once, len(positions)))
        where = np.repeat(positions[part], bases, axis=0)
        index = np.tile(np.arange(bases), part.stop - part.start)
        made = patches if isinstance(patches, Tensor) else patches(part).flatten(0, 1)
        for rows, flat, _ in inc.stream_patches(made, where, base_index=index):
            yield first + rows // bases, index[rows], inc.restore(flat)
