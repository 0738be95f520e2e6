"""Autocast: PyTorch's operators cast by themselves inside it, so whoever runs a graph must know of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that autocast casts to on a device; None outside of autocast."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.get_autocast_dtype(device.type) if available and torch.is_autocast_enabled(device.type) else None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, operators run in the types they are given."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)


def described(dtype: torch.dtype | None) -> str:
    """Autocast's state, for messages."""
    return "without autocast" if dtype is None else f"under autocast to {dtype}"
