"""Base store: what queries read of the base images, channels-last and padded once."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from kcompile.core.plan import BaseTensor, Plan
from kcompile.runtime.derived import Derived


@dataclass(frozen=True)
class BaseStore:
    """What is kept of the base images.

    Attributes:
        tensors: Base tensors by name, each [B, *padded sizes, C] (B = 1 for constants).
        images: The base images [B, C, *sizes].
        others: The other inputs that have a row for each of them [B, ...].
        beside: Bytes of what else is kept as long as the store is.
        made: Derived tensors that were asked for, by name, each with what tells when it is written.
    """

    tensors: dict[str, Tensor]
    images: Tensor
    others: tuple[Tensor, ...] = ()
    beside: int = 0
    made: dict[str, tuple[Tensor, torch.cuda.Event | None]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of base images."""
        return len(self.images)

    def derived(self, name: str, how: Derived) -> Tensor:
        """A derived tensor, made when it is first asked for; who asks on another stream of the device waits for it."""
        if name not in self.made:
            made = how.make(self.tensors[how.base])
            self.made[name] = made, _written(made)
        made, written = self.made[name]
        if written is not None:
            torch.cuda.current_stream(made.device).wait_event(written)
        return made

    @classmethod
    def fill(
        cls, plan: Plan, sources: tuple[Tensor, ...], images: Tensor, others: tuple[Tensor, ...] = ()
    ) -> BaseStore:
        """Build the store from the outputs of the materialize graph.

        Args:
            plan: Names the base tensors.
            sources: One tensor per base tensor, of its own layout (constants without batch).
            images: The base images.
            others: The other inputs with rows.
        """
        tensors = {}
        for base, source in zip(plan.bases, sources, strict=True):
            tensors[base.name] = new_store(base, source, len(images) if base.batched else 1)
            put(base, tensors[base.name], source)
        return cls(tensors, images, others)

    @property
    def nbytes(self) -> int:
        """Memory of the base tensors, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def held(self) -> int:
        """Memory of all that is kept of the base images, in bytes."""
        inputs = sum(tensor.numel() * tensor.element_size() for tensor in (self.images, *self.others))
        return self.nbytes + inputs + self.beside


def _written(tensor: Tensor) -> torch.cuda.Event | None:
    """Comes where the current stream has written a tensor; None where that is done already."""
    if tensor.device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def new_store(base: BaseTensor, source: Tensor, rows: int) -> Tensor:
    """Memory for a base tensor of so many images, filled with its padding.

    Args:
        base: The base tensor.
        source: Its value for some images, of its own layout.
        rows: Number of images; 1 for a constant.
    """
    return source.new_full(stored_shape(base, rows), base.fill)


def stored_shape(base: BaseTensor, rows: int) -> tuple[int, ...]:
    """[rows, *padded sizes, C] of a base tensor."""
    sizes = [size + low + high for size, (low, high) in zip(base.sizes, base.padding, strict=True)]
    return (rows, *sizes, prod(base.shape) // max(prod(base.sizes), 1))


def put(base: BaseTensor, stored: Tensor, source: Tensor, first: int = 0) -> None:
    """Write a source's rows into the store, from row ``first`` on."""
    value = source if base.batched else source.reshape(1, *base.shape)
    channels = [dim for dim in range(1, value.dim()) if dim not in base.axes]
    laid = value.permute(0, *base.axes, *channels)
    inner = laid.flatten(len(base.axes) + 1) if channels else laid.unsqueeze(-1)
    place = stored[first : first + len(value)]
    for axis, (low, _) in enumerate(base.padding):
        place = place.narrow(axis + 1, low, base.sizes[axis])
    place.copy_(inner)
