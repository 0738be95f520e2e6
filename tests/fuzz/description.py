"""Random graphs as data: what hypothesis grows and shrinks, and what is printed to be run again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ref:
    """The result of an earlier call; 0 is the image batch."""

    index: int


@dataclass(frozen=True)
class Const:
    """A random tensor, known by its number: the same number is the same tensor (shared weights).

    ``kind`` is "weight" (spread so that sums over all but the first dimension keep their size), "bias" or "positive".
    """

    number: int
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call of ATen by name and overload ("conv2d.default"), or "getitem"."""

    op: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Graph:
    """A network: call i makes value i + 1; the outputs are the values named."""

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    seed: int
    calls: tuple[Call, ...]
    outputs: tuple[int, ...]

    def __repr__(self) -> str:
        """A program that checks this graph."""
        names = "shape", "patch", "seed", "outputs"
        rest = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        lines = "".join(f"\n    {call!r}," for call in self.calls)
        return f"Graph({rest}, calls=({lines}\n))"


def program(graph: Graph, exported: bool) -> str:
    """A runnable description of a failure."""
    return (
        "from tests.fuzz.check import check\nfrom tests.fuzz.description import Call, Const, Graph, Ref\n\n"
        f"print(check({graph!r}, exported={exported}))\n"
    )


def make(const: Const, seed: int) -> Tensor:
    """The tensor that a `Const` stands for, in float64."""
    generator = torch.Generator().manual_seed(seed * 1009 + const.number)
    if const.kind == "positive":
        return torch.rand(const.shape, generator=generator, dtype=torch.float64) + 0.5
    value = torch.randn(const.shape, generator=generator, dtype=torch.float64)
    if const.kind == "bias":
        return value * 0.3
    fan_in = max(value.numel() // max(const.shape[0], 1), 1)
    return value * (1.3 / fan_in**0.5)
