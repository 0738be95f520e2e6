"""Fingerprint of a model's weights: tells whether they changed since compilation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Fingerprint:
    """Remembers a model's weights without a copy of them; ``unread`` names buffers that don't matter.

    Where storage and version counter are as before, nothing was written, except through ``.data``: a hash of the bits
    tells. Otherwise (a move to another memory format, an in-place write) contents are compared: the hash, and sums that
    weigh values by index.
    """

    def __init__(self, model: nn.Module, unread: frozenset[str] = frozenset()) -> None:
        """Take the fingerprint of all parameters and buffers."""
        self.unread = unread
        tensors = self._tensors(model)
        self._places, self._contents = _places(tensors), _contents(tensors)

    def matches(self, model: nn.Module, *, hashed: bool = False) -> bool:
        """True if the weights hold the same values as before; with ``hashed`` also after writes through ``.data``."""
        tensors = self._tensors(model)
        places = _places(tensors)
        if hashed and places == self._places:
            return _hashes(tensors) == [entry[0] for entry in self._contents]
        if places != self._places:
            if _contents(tensors) != self._contents:
                return False
            self._places = places
        return True

    def _tensors(self, model: nn.Module) -> list[Tensor]:
        return [*model.parameters(), *(value for name, value in model.named_buffers() if name not in self.unread)]


def _places(tensors: list[Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def _bits(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().view(_INTEGERS[t.element_size()]) for t in tensors if t.numel() and not t.is_complex()]


def _hashes(tensors: list[Tensor]) -> list[int]:
    return [int(torch.hash_tensor(bits).view(torch.int64)) for bits in _bits(tensors)]


def _contents(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    """Some integers per tensor that depend on its values and their indices, but not on their order in memory."""
    with torch.no_grad():
        return [(first, *_moments(bits)) for first, bits in zip(_hashes(tensors), _bits(tensors), strict=True)]


def _moments(bits: Tensor) -> list[int]:
    """Per axis, the sum of all values times their index along it."""
    moments = []
    for axis, size in enumerate(bits.shape):
        others = [other for other in range(bits.dim()) if other != axis]
        line = bits.sum(others, dtype=torch.int64) if others else bits.to(torch.int64)
        moments.append(int((line * torch.arange(1, size + 1, device=bits.device)).sum()))
    return moments
