"""Base store: what queries read of the base images, channels-last and padded once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kcompile.core.plan import BaseTensor, Plan


@dataclass(frozen=True)
class BaseStore:
    """What is kept of the base images.

    Attributes:
        tensors: Base tensors by name, each [B, *padded sizes, C] (B = 1 for constants).
        images: The base images [B, C, *sizes].
        others: The other inputs that have a row for each of them [B, ...].
    """

    tensors: dict[str, Tensor]
    images: Tensor
    others: tuple[Tensor, ...] = ()

    @property
    def count(self) -> int:
        """Number of base images."""
        return len(self.images)

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
        tensors = {base.name: _store(base, source) for base, source in zip(plan.bases, sources, strict=True)}
        return cls(tensors, images, others)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def _store(base: BaseTensor, source: Tensor) -> Tensor:
    value = source if base.batched else source.reshape(1, *base.shape)
    channels = [dim for dim in range(1, value.dim()) if dim not in base.axes]
    laid = value.permute(0, *base.axes, *channels)
    inner = laid.flatten(len(base.axes) + 1) if channels else laid.unsqueeze(-1)
    sizes = [size + low + high for size, (low, high) in zip(base.sizes, base.padding, strict=True)]
    stored = value.new_full((value.shape[0], *sizes, inner.shape[-1]), base.fill)
    place = stored
    for axis, (low, _) in enumerate(base.padding):
        place = place.narrow(axis + 1, low, base.sizes[axis])
    place.copy_(inner)
    return stored
