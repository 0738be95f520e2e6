"""A model with a linear tail: its front compiled for patches, and the gradients behind the cut, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from kcompile.core.errors import InputError
from kcompile.core.plan import BaseTensor
from kcompile.passes.cuts import nodes_before, share_of_work
from kcompile.passes.linear import linearise, slopes_of
from kcompile.passes.propagate import propagate
from kcompile.runtime.base_store import new_store, put
from kcompile.runtime.full import full_graph
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.outputs import Outputs
from kcompile.variants import EXACT, Changes, Cropping, beside, canonical, variant


@dataclass(frozen=True)
class LinearTail:
    """What is compiled once for a cut.

    Attributes:
        front: Gives how far the linearised functions move, [N, K].
        behind: (images, …, the tensors at the cut) -> the model's flat outputs, of plain ops.
        bases: For each tensor at the cut the base tensor that its change is measured against.
        share: Estimated work of a position, as a share of the exact one.
        additive: ``behind`` takes changes of the tensors at the cut in their place.
    """

    front: IncrementalModule
    behind: fx.GraphModule
    bases: tuple[BaseTensor, ...]
    share: float
    additive: bool = False

    def materialize(self, given: Given) -> tuple[Tensor, ...]:
        """Make an image the base; the tensors at the cut."""
        tensors: tuple[Tensor, ...] = self.front.materialize_given(given)
        return tensors

    def points(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Where gradients are taken, for the tensors at the cut: copies of these, or no changes."""
        return leaves([torch.zeros_like(x) for x in tensors] if self.additive else tensors)

    def outputs(self, inc: IncrementalModule, given: Given, tensors: Sequence[Tensor]) -> Any:
        """The model's outputs from `points`; differentiable within `gradients`."""
        return pytree.tree_unflatten(list(self.behind(*given.rows, *tensors)), inc.outputs.spec)

    def before(self) -> Callable[..., tuple[Tensor, ...]]:
        """(images, …) -> the tensors at the cut, by full inference."""
        module: Callable[..., tuple[Tensor, ...]] = full_graph(self.front.materializer, [True] * len(self.bases))
        return module

    def keep(self, slopes: Sequence[Sequence[Tensor]]) -> None:
        """Store gradients [1, …] at the tensors of the cut, for each function, where the front reads them."""
        stored = {}
        for index, base in enumerate(self.bases):
            padded = replace(base, fill=0.0)
            parts = []
            for of_function in slopes:
                parts.append(new_store(padded, of_function[index], 1))
                put(padded, parts[-1], of_function[index])
            stored[slopes_of(base.name)] = torch.cat(parts, dim=-1)
        self.front.keep_beside(stored)


@contextmanager
def gradients() -> Iterator[None]:
    """Autograd on, whatever the caller's mode is."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies to take gradients at."""
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def linear_tail(
    inc: IncrementalModule,
    cut: str | float,
    changes: Changes = EXACT,
    linear_gates: bool = False,
    uncropped: bool = False,
) -> LinearTail:
    """The module with a linear tail behind a cut; compiled at first use, from the graph that the module holds.

    Args:
        inc: The compiled module.
        cut: As in `Approximation`.
        changes: What of the front is not exact.
        linear_gates: Held gates are updated to first order.
        uncropped: A share of the work as a cut lies where it does without the crops of ``changes``.

    Raises:
        InputError: No such cut, a module from a file, or one with a memory budget.
    """
    if inc.memory_budget is not None:
        raise InputError(
            "a cut takes gradients, whose memory no budget bounds: set inc.memory_budget to None for this map, or "
            "leave the cut out"
        )
    key = ("linear", cut, changes, linear_gates, uncropped)
    return variant(inc, key, lambda: _compile(inc, cut, changes, linear_gates, uncropped))


def _compile(
    inc: IncrementalModule, cut: str | float, changes: Changes, linear_gates: bool, uncropped: bool
) -> LinearTail:
    module = changes.apply(canonical(inc), len(inc.plan.patch_shape))
    analysis = changes.propagate(module, inc)
    exact = propagate(module, inc.plan.input_shape, inc.plan.patch_shape)
    whole = replace(changes, cropping=Cropping()).propagate(module, inc) if uncropped else analysis
    before = nodes_before(whole, cut, exact)
    done = linearise(module, before, lambda truncated: changes.propagate(truncated, inc), linear_gates=linear_gates)
    count = len(done.cut)
    outputs = Outputs((None,) * count, pytree.tree_structure((0,) * count), (None,) * count)
    front = beside(inc, done.plan, (done.materialize, done.front, done.tail), outputs)
    bases = tuple(done.plan.base(name) for name in done.cut)
    return LinearTail(front, done.behind, bases, share_of_work(analysis, before, exact), linear_gates)
