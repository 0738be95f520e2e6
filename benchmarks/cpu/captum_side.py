"""Captum's `Occlusion` on the plain model, cut short after enough windows."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu.naive import MissingError, Models
from benchmarks.maps import IntArray


class _EnoughError(Exception):
    """The model has seen as many windows as were asked for."""


@dataclass(frozen=True)
class Captum:
    """Captum's time per window. It has no positions of its own choice: windows come in its order, from the first on.

    Attributes:
        model: The plain model.
        batch: Windows per call (``perturbations_per_eval``).
        stride: Distance of windows in pixels.
        version: Of Captum.
    """

    model: nn.Module
    batch: int
    stride: int
    version: str
    name: str = "captum"

    def time(self, image: Tensor, positions: IntArray, patch: int) -> tuple[float, None]:
        """Seconds for as many windows as there are positions, without those of the base; no outputs."""
        from captum.attr import Occlusion

        seen, begun = 0, 0.0

        def forward(images: Tensor) -> Tensor:
            nonlocal seen, begun
            output: Tensor = self.model(images)
            if not begun:  # the base comes first
                begun = time.perf_counter()
                return output
            seen += len(images)
            if seen >= len(positions):
                raise _EnoughError
            return output

        window, steps = (image.shape[0], patch, patch), (image.shape[0], self.stride, self.stride)
        options: dict[str, Any] = {"target": 0, "perturbations_per_eval": self.batch}
        try:
            with torch.no_grad():
                Occlusion(forward).attribute(image.unsqueeze(0), window, steps, **options)
        except _EnoughError:
            pass
        return (time.perf_counter() - begun) * len(positions) / seen, None


def captum(models: Models, stride: int) -> Captum:
    """Captum on the same channels-last model as eager PyTorch.

    Raises:
        MissingError: Captum is not installed.
    """
    if importlib.util.find_spec("captum") is None:
        raise MissingError("captum is not installed (pip install kcompile[bench])")
    from captum import __version__

    return Captum(models.channels_last, models.batch, stride, __version__)
