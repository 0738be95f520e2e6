"""What is known of each value of an emitted graph: its type, and the sizes that all batches share.

The graph runs on fake tensors for the smallest and the largest batches; sizes in which these agree are the same for
all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

import kcompile.cuda_ops.schema  # noqa: F401  (defines torch.ops.kcompile)
from kcompile.core.boxes import Boxes
from kcompile.core.interval import Interval
from kcompile.core.plan import Plan
from kcompile.core.region import Region, evaluate

Sizes = dict[fx.Node, Any]


def agreed(module: fx.GraphModule, calls: Sequence[Mapping[str, Any]]) -> Sizes:
    """Per node a tree of (type, shape) for tensors, or a number; None for sizes and numbers that differ.

    Args:
        module: The graph.
        calls: The inputs of some runs, by the names of the placeholders; tensors on the meta device.
    """
    runs = [_run(module, given) for given in calls]
    return {node: _merge([run[node] for run in runs]) for node in runs[0]}


def _run(module: fx.GraphModule, given: Mapping[str, Any]) -> Sizes:
    found: Sizes = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():

        class Recorder(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                result = super().run_node(node)
                found[node] = pytree.tree_map(_described, result)
                return result

        args = [_fake(given[str(node.target)], mode) for node in module.graph.nodes if node.op == "placeholder"]
        Recorder(module).run(*args)
    return found


def _fake(value: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(value, Tensor):
        return value
    with mode:
        return torch.empty(value.shape, dtype=value.dtype)


def _described(value: Any) -> Any:
    return (
        Described(value.dtype, tuple(value.shape), (tuple(value.shape),))
        if isinstance(value, (Tensor, FakeTensor))
        else value
    )


class Described:
    """Type and shape of a tensor, and its shape in each run; a leaf of trees."""

    def __init__(
        self, dtype: torch.dtype, shape: tuple[int | None, ...], examples: tuple[tuple[int, ...], ...]
    ) -> None:
        """Hold all."""
        self.dtype, self.shape, self.examples = dtype, shape, examples


def _merge(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Described):
        sizes = zip(*(value.shape for value in values), strict=True)
        shape = tuple(size[0] if len(set(size)) == 1 else None for size in sizes)
        return Described(first.dtype, shape, tuple(value.examples[0] for value in values))
    if isinstance(first, (list, tuple)):
        return tuple(_merge(list(items)) for items in zip(*values, strict=True))
    return first if all(value == first for value in values) else None


def front_calls(plan: Plan, dtype: torch.dtype, bases: Mapping[str, torch.dtype]) -> list[dict[str, Any]]:
    """Inputs of the front for the largest boxes there are, and for the smallest patch in two corners.

    Args:
        plan: The plan.
        dtype: Of the patches.
        bases: Of the base tensors, by name.
    """
    image = np.array(plan.input_shape[1:])
    patch = np.minimum(plan.patch_shape, image)
    steps = [np.arange(size - extent + 1) for size, extent in zip(image, patch, strict=True)]
    longest = max(map(len, steps))
    everywhere = np.stack([np.resize(step, longest) for step in steps], axis=1)  # axes are a matter of their own
    one = np.ones_like(image)
    batches = [(everywhere, patch), (np.stack([0 * image] * 2), one), (np.stack([image - 1] * 3), one)]
    return [_front_call(plan, positions, sizes, dtype, bases) for positions, sizes in batches]


def _front_call(
    plan: Plan, positions: Any, sizes: Any, dtype: torch.dtype, bases: Mapping[str, torch.dtype]
) -> dict[str, Any]:
    count, axes = positions.shape
    regions = evaluate(
        plan.regions, Region.of(*(Interval.of(at, at + size) for at, size in zip(positions.T, sizes, strict=True)))
    )
    boxes = [Boxes.around(r, entry.shape, entry.units) for r, entry in zip(regions, plan.regions, strict=True)]
    given: dict[str, Any] = {
        "patches": torch.empty(count, plan.input_shape[0], *sizes.tolist(), dtype=dtype, device="meta")
    }
    rows = torch.empty(count, axes, dtype=torch.int64, device="meta")
    for base in plan.bases:
        padded = [size + low + high for size, (low, high) in zip(base.sizes, base.padding, strict=True)]
        channels = int(np.prod(base.shape)) // max(int(np.prod(base.sizes)), 1)
        given[f"base_{base.name}"] = torch.empty(1, *padded, channels, dtype=bases[base.name], device="meta")
    for read in plan.reads:
        extent = (
            tuple(m.in_size for m in read.maps) if read.target is None else boxes[read.target].window(read.maps).extent
        )
        given |= {f"{read.name}_{part}": rows for part in ("origins", "offsets", "start", "at")}
        given[f"{read.name}_extent"] = list(extent)
        given[f"{read.name}_padding"] = [0] * len(read.native)
        given[f"{read.name}_size"] = list(extent if read.target is None else boxes[read.target].extent)
    return given
