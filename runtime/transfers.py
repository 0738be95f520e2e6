"""Copies between host and GPU that don't wait: the host goes on queueing work while they are made."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device; on the CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Arriving:
    """Values on their way to the host, as float32."""

    def __init__(self, values: Tensor) -> None:
        """Start the copy."""
        self._values = values.detach().float().to("cpu", non_blocking=True)  # PyTorch takes memory that needn't wait
        self._event = None
        if values.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))

    def numpy(self) -> npt.NDArray[Any]:
        """The values, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        array: npt.NDArray[Any] = self._values.numpy()
        return array
