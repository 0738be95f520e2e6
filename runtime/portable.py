"""What a compiled module is in copies and pickles, on another device, and in another type."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from kcompile.core.errors import InputError
from kcompile.runtime.fingerprint import Fingerprint
from kcompile.runtime.moves import once, retarget
from kcompile.runtime.notes import restore_notes, take_notes
from kcompile.runtime.outputs import Outputs

GRAPHS = ("materializer", "front", "tail")
MADE_AGAIN = ("runners", "_store", "_earlier", "base_output")


class Portable(nn.Module):
    """Moves and copies of `IncrementalModule`, whose attributes these are."""

    model: nn.Module
    outputs: Outputs
    recompile: Callable[[nn.Module], Any] | None
    _like: Tensor
    _weights: Fingerprint

    @abstractmethod
    def drop_base(self) -> None:
        """See `IncrementalModule`."""

    @abstractmethod
    def new_runners(self) -> None:
        """See `IncrementalModule`."""

    @abstractmethod
    def refresh(self) -> None:
        """See `IncrementalModule`."""

    @abstractmethod
    def watch(self, unread: frozenset[str] = frozenset()) -> None:
        """See `IncrementalModule`."""

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are made without what can be made again: prepacked weights and base images."""
        notes = {part: take_notes(getattr(self, part)) for part in GRAPHS}
        return {**self.__dict__, **dict.fromkeys(MADE_AGAIN), "_flat_base": [], "_notes": notes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        notes = state.pop("_notes")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for part, of_calls in notes.items():
            restore_notes(getattr(self, part), of_calls)
        self.new_runners()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves keep the plan, casts compile again (folded weights would keep the old rounding); bases are dropped."""
        current, before, dtype = self._weights.matches(self.model), self._like, self._like.dtype
        if self.recompile is None and fn(before).dtype != dtype:
            raise InputError(
                f"a module loaded from a file keeps its type, {dtype}: cast the model and compile it again"
            )
        fn = once(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.outputs = self.outputs.moved(fn)
        for part in GRAPHS:
            retarget(getattr(self, part), before, self._like)
        self.drop_base()
        self.new_runners()
        if self._like.dtype != dtype and self.recompile is not None:
            self.refresh()
        elif current:
            self.watch(self._weights.unread)
        return self
