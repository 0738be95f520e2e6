"""Variants of a compiled module: the same model, compiled again from the graph that the module holds."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import fx

from kcompile.core.errors import InputError
from kcompile.core.plan import Plan
from kcompile.passes.gates import Hold, SplitGlobalNorms, hold_gates
from kcompile.passes.infra import run_passes
from kcompile.passes.pipeline import compile_analysed
from kcompile.passes.propagate import Analysis, Limits, propagate
from kcompile.passes.thresholds import by_layer, share_of_the_map, smallest
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.outputs import Outputs

T = TypeVar("T")
Layers = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Cropping:
    """How regions are cropped: to a share of each map, and to the cells per axis of each layer."""

    tau: float = 1.0
    extents: Layers = ()

    def limits(self) -> Limits | None:
        """For `propagate`; None where nothing is cropped."""
        rules = [share_of_the_map(self.tau)] if self.tau < 1 else []
        rules += [by_layer(dict(self.extents))] if self.extents else []
        return smallest(rules) if rules else None


@dataclass(frozen=True)
class Changes:
    """What is compiled otherwise than for exact inference."""

    cropping: Cropping = Cropping()
    held: bool = False

    def apply(self, module: fx.GraphModule, axes: int) -> fx.GraphModule:
        """A canonical graph in the form that these changes need.

        Raises:
            InputError: Extents of layers that the graph has not, or for another number of axes.
        """
        names = {node.name for node in module.graph.nodes}
        for name, cells in self.cropping.extents:
            if name not in names or len(cells) != axes:
                raise InputError(
                    f"extents has {name!r}: {cells}; allowed are layers of this model's graph, with {axes} numbers "
                    "each, as kcompile.measure_extents gives them"
                )
        return run_passes(module, [SplitGlobalNorms()]).module if self.held else module

    def propagate(self, module: fx.GraphModule, inc: IncrementalModule) -> Analysis:
        """The regions of what `apply` gave."""
        return propagate(module, inc.plan.input_shape, inc.plan.patch_shape, self.cropping.limits(), self.hold)

    @property
    def hold(self) -> Hold | None:
        """For `propagate`."""
        return hold_gates if self.held else None


EXACT = Changes()
_MADE: WeakKeyDictionary[IncrementalModule, dict[Any, tuple[tuple[Any, ...], Any]]] = WeakKeyDictionary()


def variant(inc: IncrementalModule, key: Any, make: Callable[[], T]) -> T:
    """What was made of a module under a key, made now if it wasn't or if the module has changed since.

    Raises:
        StaleWeightsError: The model's weights changed after compilation.
    """
    inc._check_weights(hashed=True)
    made = _MADE.setdefault(inc, {})
    state = (inc.plan, inc.materializer, inc._like)
    known = made.get(key)
    if known is None or any(a is not b for a, b in zip(known[0], state, strict=True)):
        made[key] = (state, make())
    return cast(T, made[key][1])


def changed(inc: IncrementalModule, changes: Changes) -> IncrementalModule:
    """A module that is compiled with some changes, under the same memory budget; the same one for none.

    Raises:
        InputError: A module from a file.
        MemoryBudgetError: The budget is too small for one base image and one query.
    """
    return inc if changes == EXACT else _budgeted(variant(inc, changes, lambda: _changed(inc, changes)), inc)


def _changed(inc: IncrementalModule, changes: Changes) -> IncrementalModule:
    module = changes.apply(canonical(inc), len(inc.plan.patch_shape))
    done = compile_analysed(module, changes.propagate(module, inc))
    outputs = Outputs(done.outputs, inc.outputs.spec, inc.outputs.activations)
    return beside(inc, done.plan, (done.materialize, done.front, done.tail), outputs)


def has_gates(inc: IncrementalModule) -> bool:
    """Whether gates="held" changes anything.

    Raises:
        InputError: A module from a file.
    """
    return variant(inc, "gates", lambda: _has_gates(inc))


def _has_gates(inc: IncrementalModule) -> bool:
    changes = Changes(held=True)
    module = changes.apply(canonical(inc), len(inc.plan.patch_shape))
    return any(info.rule == "held" for info in changes.propagate(module, inc).nodes.values())


def in_dtype(inc: IncrementalModule, name: str) -> IncrementalModule:
    """The module compiled from a copy of its model in another type; the same one if that is its own.

    Args:
        inc: The module.
        name: "bfloat16" or "float16".

    Raises:
        InputError: The device has no arithmetic of that type, or a module from a file.
        MemoryBudgetError: The budget is too small for one base image and one query.
    """
    dtype: torch.dtype = getattr(torch, name)
    if inc._like.dtype is dtype:
        return inc
    if not has_arithmetic(dtype, inc._like.device):
        raise InputError(f"dtype is {name!r}, but this {inc._like.device.type} has no arithmetic of that type")
    return _budgeted(variant(inc, dtype, lambda: _in_dtype(inc, dtype)), inc)


def _budgeted(made: IncrementalModule, inc: IncrementalModule) -> IncrementalModule:
    """A variant under the budget that its module has now; bases of both are never held at once (`scorers.Exact`)."""
    if made.memory_budget != inc.memory_budget:
        made.memory_budget = inc.memory_budget
    return made


def _in_dtype(inc: IncrementalModule, dtype: torch.dtype) -> IncrementalModule:
    if inc.recompile is None:
        raise InputError("this module was loaded from a file and holds no model to compile in another type")
    made = inc.recompile(deepcopy(inc.model).to(dtype))
    made.policy = "incremental"
    return made


def has_arithmetic(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device computes in a type, rather than converting every value to float32 and back."""
    if device.type == "cuda":
        return dtype is torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    has = torch.ops.mkldnn._is_mkldnn_bf16_supported if dtype is torch.bfloat16 else _has_half
    return bool(torch.backends.mkldnn.is_available() and has())


def _has_half() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def beside(
    inc: IncrementalModule, plan: Plan, graphs: tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule], outputs: Outputs
) -> IncrementalModule:
    """Another module of the same model; its calls are always incremental, as full inference is something else."""
    made = IncrementalModule(inc.model, plan, graphs, inc.inputs, outputs, inc._like)
    made.watch(inc._weights.unread)
    made.switches_autocast = inc.switches_autocast
    made.policy = "incremental"
    return made


def canonical(inc: IncrementalModule) -> fx.GraphModule:
    """A copy of the canonical graph that a module was compiled from; weights are shared.

    Raises:
        InputError: The module was loaded from a file, whose graphs have no shapes.
    """
    held = inc.materializer
    if "val" not in next(iter(held.graph.nodes)).meta:
        raise InputError(
            "this module was loaded from a file, without what approximations are compiled from: compile the model with "
            "kcompile.incrementalize"
        )
    graph = fx.Graph()
    copied: Any = graph.graph_copy(held.graph, val_map={})
    graph.output(copied[0])
    graph.eliminate_dead_code()
    return fx.GraphModule(held, graph, "Canonical")
