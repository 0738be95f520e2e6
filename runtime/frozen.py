"""FrozenModel: full inference from a graph, where the model's own code does not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from kcompile.core.errors import InputError
from kcompile.core.plan import GIVEN
from kcompile.runtime.autocast import autocast_dtype
from kcompile.runtime.folding import Folding
from kcompile.runtime.full import full_graph
from kcompile.runtime.inputs import Inputs, TensorInput, alike, check_fixed, flatten
from kcompile.runtime.moves import retarget
from kcompile.runtime.outputs import Outputs


class FrozenModel(nn.Module):
    """The plain call of a module that was loaded from a file. Its weights are parameters without gradient.

    Attributes:
        graph_module: Gives the flat outputs of the tensors of a call: the images, then other inputs with a row for each
            of them, then those without; ``print(inc.model.graph_module.code)``.
    """

    _like: Tensor

    def __init__(
        self, materializer: fx.GraphModule, inputs: Inputs, outputs: Outputs, like: Tensor, folding: Folding
    ) -> None:
        """Take a materialize graph without its base tensors; weights are shared. ``like`` tells type and device."""
        super().__init__()
        self.folding = folding
        self._undone: dict[torch.dtype, fx.GraphModule] = {}
        self.inputs, self.outputs = inputs, outputs
        whole = [i for i, leaf in enumerate(inputs.leaves) if isinstance(leaf, TensorInput) and not leaf.rows]
        rows = [i for i, leaf in enumerate(inputs.leaves) if isinstance(leaf, TensorInput) and leaf.rows]
        self.order = [inputs.image, *(i for i in rows if i != inputs.image), *whole]
        graph_module = full_graph(materializer, [True] * len(outputs.entries))
        self.graph_module = _with_inputs(graph_module, [f"{GIVEN}{index}" for index in whole])
        self.register_buffer("_like", like.new_empty(0), persistent=False)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returned that was saved, called in the same way."""
        flat, spec = flatten(args, kwargs)
        if not alike(spec, self.inputs.spec) and not (self.inputs.single and len(flat) == 1):
            names = ", ".join(leaf.name for leaf in self.inputs.leaves)
            raise InputError(f"{len(flat)} inputs are given, or in another structure; allowed are {names}")
        for leaf, value in zip(self.inputs.leaves, flat, strict=True):
            if not isinstance(leaf, TensorInput):
                check_fixed(leaf, value)
        results = self._graph()(*(flat[index] for index in self.order))
        return pytree.tree_unflatten(list(results), self.outputs.spec)

    def _graph(self) -> fx.GraphModule:
        """The graph to run, by autocast."""
        if (autocast := autocast_dtype(self._like.device)) is None:
            return self.graph_module
        if autocast not in self._undone:
            self._undone[autocast] = self.folding.undone(self.graph_module, autocast)
        return self._undone[autocast]

    def __getstate__(self) -> dict[str, Any]:
        """Copies are made without what can be made again."""
        return {**self.__dict__, "_undone": {}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenModel:
        before = self._like
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        retarget(self.graph_module, before, self._like)
        self._undone = {}
        return self


def _with_inputs(module: fx.GraphModule, names: list[str]) -> fx.GraphModule:
    """Attributes of these names become inputs, the last ones, so that a call writes into nothing."""
    graph = module.graph
    for name in names:
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            given = graph.placeholder(name)
        for node in graph.find_nodes(op="get_attr", target=name):
            node.replace_all_uses_with(given)
            graph.erase_node(node)
    return fx.GraphModule(module, graph, "Full")
