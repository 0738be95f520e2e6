"""Which classes are explained. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np

from kcompile.core.errors import InputError

Targets: TypeAlias = int | Sequence[int] | None


def several(target: Any) -> bool:
    """Whether a list of targets is meant, were it one of length 1."""
    return bool(target.ndim) if hasattr(target, "ndim") else isinstance(target, Sequence)


def as_targets(target: Any, base: Any) -> list[int]:
    """The classes to explain, by default the one with the highest of the base scores [K].

    Raises:
        InputError: No class of the model, or an empty list.
    """
    if target is None:
        return [int(np.argmax(base))]
    plain: Any = target.tolist() if hasattr(target, "tolist") else target
    chosen: list[Any] = list(plain) if several(target) else [plain]
    if not chosen or not all(isinstance(one, Integral) and 0 <= int(one) < len(base) for one in chosen):
        raise InputError(f"target is {target}; the model has classes 0 … {len(base) - 1}")
    return [int(one) for one in chosen]
