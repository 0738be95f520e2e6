"""Folding: batch norms that were multiplied into convolutions' weights, and how autocast has them undone."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, fx, nn

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv2d.default, _aten.conv2d.padding)


class Folding(nn.Module):
    """The factors of the folded batch norms.

    Autocast rounds weights to its type: the model's before the norm scales them, folded ones after. The errors would be
    others than the model's own, by chance up to some times as large. Hence runs under autocast take them apart again.

    Attributes:
        names: The folded weights' names in the graphs, one for each factor.
    """

    def __init__(self, scales: dict[str, Tensor] | None = None) -> None:
        """Take the factors [C_out] by the weights' names."""
        super().__init__()
        self.names = list(scales or {})
        for index, scale in enumerate((scales or {}).values()):
            self.register_buffer(f"scale_{index}", scale, persistent=False)

    def scales(self) -> dict[str, Tensor]:
        """The factors by the weights' names."""
        return {name: getattr(self, f"scale_{index}") for index, name in enumerate(self.names)}

    def undone(self, module: fx.GraphModule, autocast: torch.dtype | None) -> fx.GraphModule:
        """The graph for an autocast: each norm stands behind its convolution, and rounds as the model's does.

        Args:
            module: A graph as it was emitted; it is left as it is.
            autocast: The type that autocast casts to; with None the graph itself is returned.
        """
        scales = self.scales()
        if autocast is None or not scales:
            return module
        graph = fx.Graph()
        graph.output(graph.graph_copy(module.graph, val_map={}))
        made = fx.GraphModule(module, graph, module.__class__.__name__)
        for node in [node for target in _CONVOLUTIONS for node in graph.find_nodes(op="call_function", target=target)]:
            if (weight := node.args[1]).op == "get_attr" and weight.target in scales:
                _undo(made, node, scales[weight.target], autocast)
        graph.eliminate_dead_code()
        made.recompile()
        return made


def _undo(module: fx.GraphModule, node: fx.Node, scale: Tensor, autocast: torch.dtype) -> None:
    """``conv(x, w * s, b)`` becomes ``b + conv(x, w) * s``: rounded, added up in the weights' type, rounded again."""
    source, weight, bias = node.args[:3]
    assert isinstance(weight, fx.Node)
    assert isinstance(bias, fx.Node)
    folded: Tensor = attrgetter(str(weight.target))(module)
    usable = torch.isfinite(scale) & (scale != 0)
    scale = torch.where(usable, scale, torch.ones_like(scale))
    each = (-1, *[1] * (folded.dim() - 1))
    constants = {
        f"{weight.target}_apart": folded / scale.view(each),
        f"{weight.target}_scale": scale.view(each[:-1]),
        f"{weight.target}_shift": attrgetter(str(bias.target))(module).view(each[:-1]),
    }
    for name, value in constants.items():
        module.register_buffer(name, value)
    graph = module.graph
    with graph.inserting_before(node):
        apart, factor, shift = (graph.get_attr(name) for name in constants)
        conv = graph.call_function(node.target, (source, apart, None, *node.args[3:]), node.kwargs)  # type: ignore[arg-type]
        wide = graph.call_function(_aten.addcmul.default, (shift, conv, factor))
        rounded = graph.call_function(_aten._to_copy.default, (wide,), {"dtype": autocast})
    for made in (conv, wide, rounded):
        made.meta = dict(node.meta)
    node.replace_all_uses_with(rounded)
    graph.erase_node(node)
