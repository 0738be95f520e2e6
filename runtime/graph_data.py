"""Graph modules as data: nodes, the names of their ops, their arguments and notes.

An op is one of a closed list: PyTorch's and kcompile's own operators, and arithmetic on sizes. So reading a file runs
no code that the file brings along, unlike a pickled graph module, which is Python source.
"""

from __future__ import annotations

import math
import operator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.core.errors import SaveError
from kcompile.core.plan import Plan
from kcompile.runtime.notes import KEYS
from kcompile.runtime.values import Reader, Writer

NAMESPACES = ("aten", "prims", "kcompile", "torchvision")
REFUSED = ("aten.from_file.default",)  # reads, and can make, files
_ON_SIZES: dict[str, Any] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in ("getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs",
                     "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{f"torch.{name}": getattr(torch, name)
       for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt")},
}  # fmt: skip
_NAMES = {function: name for name, function in _ON_SIZES.items()}
_OPS = {"placeholder", "get_attr", "call_function", "output"}


def graph_data(module: fx.GraphModule, writer: Writer) -> dict[str, Any]:
    """A graph module as JSON data; its tensors go to ``writer``.

    Raises:
        SaveError: The graph calls what isn't on the list, or holds something else than tensors.
    """
    return {
        "name": module.__class__.__name__,
        "nodes": [_node_data(node, module, writer) for node in module.graph.nodes],
    }


def read_graph(data: dict[str, Any], plan: Plan, reader: Reader) -> fx.GraphModule:
    """The graph module that `graph_data` was given: the same names, code, notes and (shared) tensors.

    Args:
        data: JSON data.
        plan: Holds the reads that notes refer to.
        reader: Has the tensors.

    Raises:
        SaveError: An op that isn't on the list, or that this version of torch does not have.
        KeyError, ValueError, TypeError: The data is damaged.
    """
    graph, nodes, attributes = fx.Graph(), dict[str, fx.Node](), dict[str, Any]()
    reads = {read.name: read for read in plan.reads}
    for entry in data["nodes"]:
        op, target = entry["op"], entry["target"]
        if op not in _OPS:
            raise ValueError(f"{op!r} is no kind of node")
        called = target_of(target) if op == "call_function" else target
        args, kwargs = (reader.value(entry[part], nodes) for part in ("args", "kwargs"))
        node = graph.create_node(op, called, args, kwargs)
        node._rename(entry["name"])
        node.meta.update(_read_notes(entry["notes"], reads))
        nodes[entry["name"]] = node
        if op == "get_attr":
            attributes[target] = reader.tensor(entry["tensor"])
    return fx.GraphModule(attributes, graph, data["name"])


def target_name(target: Any) -> str:
    """The name of an op in files; SaveError if it isn't on the list."""
    name = _NAMES.get(target, str(target)) if not isinstance(target, OpOverload) else str(target)
    known = name in _ON_SIZES or (isinstance(target, OpOverload) and target.namespace in NAMESPACES)
    if not known or name in REFUSED:
        raise SaveError(
            f"can't save a model that calls {name}: files may name operators of {', '.join(NAMESPACES)} alone, so that "
            "they need no code beside torch's. pickle the module instead"
        )
    return name


def target_of(name: str) -> Any:
    """The op that a file names; SaveError if it isn't on the list or doesn't exist."""
    if name in _ON_SIZES:
        return _ON_SIZES[name]
    namespace, _, rest = name.partition(".")
    if namespace not in NAMESPACES or name in REFUSED or not isinstance(name, str):
        raise SaveError(f"the file calls {name!r}; allowed are operators of {', '.join(NAMESPACES)}")
    if namespace == "torchvision":
        import torchvision  # noqa: F401  (registers its operators)
    try:
        op = attrgetter(rest)(getattr(torch.ops, namespace))
    except AttributeError:
        op = None
    if not isinstance(op, OpOverload):
        raise SaveError(f"the file calls {name!r}, which torch {torch.__version__} does not have")
    return op


def _node_data(node: fx.Node, module: fx.GraphModule, writer: Writer) -> dict[str, Any]:
    data: dict[str, Any] = {
        "op": node.op,
        "name": node.name,
        "target": target_name(node.target) if node.op == "call_function" else str(node.target),
        "args": writer.data(node.args),
        "kwargs": writer.data(dict(node.kwargs)),
        "notes": _notes(node),
    }
    if node.op == "get_attr":
        value = attrgetter(str(node.target))(module)
        if not isinstance(value, Tensor):
            raise SaveError(f"can't save {node.target}, a {type(value).__name__}: graphs may hold tensors alone")
        data["tensor"] = writer.data(value)
    return data


def _notes(node: fx.Node) -> dict[str, Any]:
    """What the runtime reads of a node's ``meta``."""
    notes = {key: node.meta[key] for key in KEYS if key in node.meta}
    return {**notes, "read": node.meta["read"].name} if "read" in node.meta else notes


def _read_notes(data: dict[str, Any], reads: dict[str, Any]) -> dict[str, Any]:
    notes = {key: [*map(_tuples, value)] if key == "input_sizes" else _tuples(value) for key, value in data.items()}
    return {**notes, "read": reads[data["read"]]} if "read" in data else notes


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
