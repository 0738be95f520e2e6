"""One row of the op table, and short ways to write one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.support.networks import Call, Function

MAP = (4, 9, 11)  # channels and sizes: odd, and not the same per axis
EVEN = (4, 8, 12)
LINE = (3, 12)
VOLUME = (2, 5, 7, 4)
NEVER = 99  # as `Case.dilation`: the region may be larger than the change for every patch


@dataclass(frozen=True)
class Case:
    """One op with parameters.

    Attributes:
        name: For the test's name.
        make: Builds the module (random weights), before `ready`.
        shape: (C, *sizes) of the image.
        scale: Images and patches are random numbers times ``scale`` ...
        offset: ... plus ``offset``.
        positive: They are positive: ops that are defined there alone.
        dilation: Largest distance between two taps. The region is the hull of what changes for all patches of at least
            this size; for smaller ones it may be larger, as taps can miss the patch.
        refused: Part of the reason why the op's node is dense; None if it is incremental.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = MAP
    scale: float = 1.0
    offset: float = 0.0
    positive: bool = False
    dilation: int = 1
    refused: str | None = None


def call(name: str, function: Function, shape: tuple[int, ...] = MAP, **options: Any) -> Case:
    """A function of the image."""
    return Case(name, lambda: Call(function), shape, **options)


def op(name: str, *args: Any, **options: Any) -> Case:
    """An op of ATen, by name and overload, with further arguments."""
    packet, _, overload = name.partition(".")
    target = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return call(f"{name} {list(args)}" if args else name, lambda x: target(x, *args), **options)
