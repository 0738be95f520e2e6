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
