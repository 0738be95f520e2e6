"""How many rows really ran incrementally, and how many in full: counted where they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import nn

from kcompile.runtime.executor import Executor


@dataclass
class Rows:
    """Rows that the executor inferred incrementally, and rows that the plain model got."""

    incremental: int = 0
    full: int = 0


@contextmanager
def counted_rows(model: nn.Module) -> Iterator[Rows]:
    """Count rows while in this context; ``model`` is the plain one.

    The model's ``forward`` is wrapped: a forward hook would be a reason for the compiled module to leave it all to it.
    """
    rows, inner, plain = Rows(), Executor._incremental, model.forward

    def incremental(executor: Executor, call: Any, batches: Any) -> Any:
        rows.incremental += sum(map(len, batches))
        return inner(executor, call, batches)

    def full(*args: Any, **kwargs: Any) -> Any:
        rows.full += len(args[0])
        return plain(*args, **kwargs)

    with mock.patch.object(Executor, "_incremental", incremental), mock.patch.object(model, "forward", full):
        yield rows
