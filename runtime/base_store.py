"""Base store: what queries read of the base images, channels-last and padded once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kcompile.core.plan import BaseTensor, Plan


@dataclass(frozen=True)
class BaseStore:
    """Base tensors by name, each [B, *padded sizes, C] (B = 1 for constants), of ``count`` base images."""

    tensors: dict[str, Tensor]
    count: int

    @classmethod
    def fill(cls, plan: Plan, sources: tuple[Tensor, ...], count: int) -> BaseStore:
        """Build the store from the outputs of the materialize graph.

        Args:
            plan: Names the base tensors.
            sources: One tensor per base tensor, [B, C, *sizes] (constants without batch).
            count: Number of base images.
        """
        tensors = {base.name: _store(base, source) for base, source in zip(plan.bases, sources, strict=True)}
        return cls(tensors, count)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def _store(base: BaseTensor, source: Tensor) -> Tensor:
    value = source if base.batched else source.reshape(1, *base.shape)
    sizes = [size + low + high for size, (low, high) in zip(base.shape[1:], base.padding, strict=True)]
    stored = value.new_full((value.shape[0], *sizes, base.shape[0]), base.fill)
    inner = stored
    for axis, (low, _) in enumerate(base.padding):
        inner = inner.narrow(axis + 1, low, base.shape[axis + 1])
    inner.copy_(value.movedim(1, -1))
    return stored
