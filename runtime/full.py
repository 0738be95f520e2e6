"""Full inference of patched images: what an incremental run is held against, and used where it is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.core.interval import IntArray
from kcompile.runtime.transfers import upload


def full_graph(materializer: fx.GraphModule, wanted: Sequence[bool]) -> fx.GraphModule:
    """The materialize graph without its base tensors; weights are shared.

    Args:
        materializer: Gives (outputs, base tensors).
        wanted: Which of the outputs the result returns.
    """
    graph = fx.Graph()
    copied: Any = graph.graph_copy(materializer.graph, val_map={})
    outputs, _ = copied
    graph.output(tuple(out for out, keep in zip(outputs, wanted, strict=True) if keep))
    graph.eliminate_dead_code()
    return fx.GraphModule(materializer, graph, "Full")


class Deferred:
    """A graph module that is made when it is first called: most modules never run in full."""

    def __init__(self, make: Callable[[], fx.GraphModule]) -> None:
        """Take what makes it."""
        self._make = make
        self._module: fx.GraphModule | None = None

    def ready(self) -> None:
        """Make it now."""
        self._module = self._module or self._make()

    def __call__(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Run it."""
        self.ready()
        assert self._module is not None
        results: tuple[Tensor, ...] = self._module(*args)
        return results


def patched(images: Tensor, patches: Tensor, positions: IntArray) -> Tensor:
    """Copies of images [N, C, *sizes] with patches [N, C, *p] at positions [N, axes]; what sticks out is cropped."""
    offsets = upload(positions, images.device)
    laid: Tensor = torch.ops.kcompile.superimpose(images, patches, offsets)
    return laid
