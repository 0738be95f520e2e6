"""Shape ops in the forms that rules and the runtime expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from kcompile.passes.infra import PassResult, aten, calls, finish

_VIEWS = (aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class SelectToSlice:
    """``unsqueeze(select(x, 1, i), 1)`` keeps the channel dimension: a slice (as in torchvision's transform_input)."""

    name: str = "select-to-slice"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each pair."""
        modified = False
        for node in calls(module, aten.unsqueeze.default):
            inner = node.args[0]
            if not (
                isinstance(inner, fx.Node) and inner.target is aten.select.int and inner.args[1] == node.args[1] == 1
            ):
                continue
            index: Any = inner.args[2]
            end = index + 1 if index != -1 else torch.iinfo(torch.int64).max
            with module.graph.inserting_before(node):
                cut = module.graph.call_function(aten.slice.Tensor, (inner.args[0], 1, index, end))
            cut.meta = dict(node.meta)
            node.replace_all_uses_with(cut)
            module.graph.erase_node(node)
            modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """Always holds: pairs that do not match stay."""
        return None


@dataclass(frozen=True)
class ViewToReshape:
    """Tensors are channels-last at run time, so a view may have to copy."""

    name: str = "view-to-reshape"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Retarget each view."""
        views = list(calls(module, *_VIEWS))
        for node in views:
            node.target = aten.reshape.default
        return finish(module, bool(views))

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No view is left."""
        return next((f"{node} is a view" for node in calls(module, *_VIEWS)), None)


@dataclass(frozen=True)
class SqueezeToDims:
    """``squeeze()`` drops each dimension of one cell: at run time the batch too, if it is a single query."""

    name: str = "squeeze-to-dims"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Name the dimensions, which are known: the captured batch is symbolic."""
        squeezes = list(calls(module, aten.squeeze.default))
        for node in squeezes:
            image: Any = node.args[0]
            dims = [i for i, size in enumerate(image.meta["val"].shape) if isinstance(size, int) and size == 1]
            node.target, node.args = aten.squeeze.dims, (image, dims)
        return finish(module, bool(squeezes))

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No squeeze without dimensions is left."""
        return next((f"{node} drops any dimension" for node in calls(module, aten.squeeze.default)), None)


_MEMORY = (aten.as_strided.default, aten.view_as_complex.default, aten.view_as_real.default, aten.view.dtype)


@dataclass(frozen=True)
class ContiguousForMemoryOps:
    """Ops that look at memory, not at shapes, get the layout that they were captured with."""

    name: str = "contiguous-for-memory-ops"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Copy their input to contiguous memory."""
        modified = False
        for node in calls(module, *_MEMORY):
            image: Any = node.args[0]
            if image.target is aten.clone.default:
                continue
            with module.graph.inserting_before(node):
                copy = module.graph.call_function(
                    aten.clone.default, (image,), {"memory_format": torch.contiguous_format}
                )
            copy.meta = dict(image.meta)
            node.update_arg(0, copy)
            modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """Each of them reads a copy."""
        left = [node for node in calls(module, *_MEMORY) if getattr(node.args[0], "target", None) != aten.clone.default]
        return f"{left[0]} reads memory of any layout" if left else None
