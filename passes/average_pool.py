"""Average pools whose divisor varies along the border become a sum and a division by a constant map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.passes.infra import PassResult, add_constant, aten, calls, finish


@dataclass(frozen=True)
class SplitAveragePool:
    """``avg_pool2d`` becomes ``avg_pool2d(divisor_override=1) / divisors`` where the divisor varies.

    PyTorch's divisor of an output is the size of its window clipped to the padded tensor (``count_include_pad``) or to
    the tensor itself: a product of one count per axis. A window of the map then knows nothing of borders.
    """

    name: str = "split-average-pool"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each such pool."""
        modified = False
        for node in calls(module, aten.avg_pool2d.default):
            counts = divisors(node)
            if counts is None:
                continue
            image, kernel, stride, padding, ceil_mode, *_ = _arguments(node)
            with module.graph.inserting_before(node):
                total = module.graph.call_function(
                    aten.avg_pool2d.default, (image, kernel, stride, padding, ceil_mode, True, 1)
                )
            total.meta = dict(node.meta)
            dtype = node.meta["val"].dtype
            by = add_constant(module, node, f"{node.name}_divisors", counts.to(dtype))
            with module.graph.inserting_before(node):
                mean = module.graph.call_function(aten.div.Tensor, (total, by))
            mean.meta = dict(node.meta)
            node.replace_all_uses_with(mean)
            module.graph.erase_node(node)
            modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """Every average pool left divides by one number."""
        return next(
            (f"{n} has several divisors" for n in calls(module, aten.avg_pool2d.default) if divisors(n) is not None),
            None,
        )


def _arguments(node: fx.Node) -> list[Any]:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    defaults = [None, None, [], [0, 0], False, True, None]
    given = [*node.args, *defaults[len(node.args) :]]
    return [node.kwargs.get(name, value) for name, value in zip(names, given, strict=True)]


def divisors(node: fx.Node) -> Tensor | None:
    """The [H, W] map of divisors of an average pool, or None if they are all the kernel's size (or overridden)."""
    image, kernel, stride, padding, _, include, override = _arguments(node)
    if override is not None:
        return None
    axes = []
    for axis in range(2):
        k, p = _at(kernel, axis), _at(padding, axis)
        s = _at(stride, axis) if stride else k
        size, out = int(image.meta["val"].shape[axis + 2]), int(node.meta["val"].shape[axis + 2])
        first = torch.arange(out) * s - p
        last = (first + k).clamp(max=size + p)
        axes.append(last - first if include else last.clamp(max=size) - first.clamp(min=0))
    counts = axes[0][:, None] * axes[1]
    full = _at(kernel, 0) * _at(kernel, 1)
    return None if bool((counts == full).all()) else counts


def _at(value: Any, axis: int) -> int:
    values = [value] if isinstance(value, int) else list(value)
    return int(values[axis] if len(values) > 1 else values[0])
