"""What passes have in common: results, graph helpers and the verifier that runs between passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from kcompile.core.errors import VerificationError
from kcompile.core.plan import GIVEN

aten = torch.ops.aten


@dataclass(frozen=True)
class PassResult:
    """A graph module after a pass, and whether the pass changed anything."""

    module: fx.GraphModule
    modified: bool


class GraphPass(Protocol):
    """A rewrite of a whole graph; a small frozen dataclass with a name."""

    @property
    def name(self) -> str:
        """Short name for messages and tests."""

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite in place; the result's graph has been cleaned of dead nodes."""

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """What is wrong with the pass's result, or None; checked by `run_passes`."""


def run_passes(module: fx.GraphModule, passes: list[GraphPass]) -> PassResult:
    """Run passes in order, each followed by its own postcondition and the verifier.

    Raises:
        VerificationError: A pass left an inconsistent graph.
    """
    modified = False
    for step in passes:
        result = step.apply(module)
        module, modified = result.module, modified or result.modified
        problem = step.postcondition(module) or inconsistency(module)
        if problem:
            raise VerificationError(f"pass {step.name}: {problem}")
    return PassResult(module, modified)


def inconsistency(module: fx.GraphModule) -> str | None:
    """What is wrong with a graph: dangling attributes, use before definition, calls to anything but functions."""
    try:
        module.graph.lint()
    except (RuntimeError, AssertionError, AttributeError) as error:
        return str(error)
    for node in module.graph.nodes:
        if node.op not in {"placeholder", "get_attr", "call_function", "output"}:
            return f"{node.op} {node.target} is no ATen call"
    return None


def finish(module: fx.GraphModule, modified: bool) -> PassResult:
    """Clean up after a rewrite."""
    if modified:
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
    return PassResult(module, modified)


def calls(module: fx.GraphModule, *targets: Any) -> Iterator[fx.Node]:
    """The call_function nodes of the given targets, in order; a snapshot, so that they may be erased."""
    yield from [node for node in module.graph.nodes if node.op == "call_function" and node.target in targets]


def call(
    graph: fx.Graph, target: Any, args: tuple[Any, ...], origin: fx.Node, kwargs: dict[str, Any] | None = None
) -> fx.Node:
    """A new call that a pass puts in place of ``origin``: with its notes, and its own value for shapes."""
    node = graph.call_function(target, args, kwargs or {})
    node.meta = dict(origin.meta)
    mode = getattr(origin.meta.get("val"), "fake_mode", None)

    def value(arg: Any) -> Any:
        known = arg.meta.get("val") if isinstance(arg, fx.Node) else arg
        real = isinstance(known, Tensor) and not isinstance(known, FakeTensor)
        return mode.from_tensor(known) if real and mode is not None else known

    node.meta["val"] = target(
        *pytree.tree_map(value, args, is_leaf=lambda leaf: isinstance(leaf, fx.Node)), **kwargs or {}
    )
    return node


def constant(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor behind a get_attr node, or None for other nodes and for what the user gives with the images."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or str(node.target).startswith(GIVEN):
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def add_constant(module: fx.GraphModule, before: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Store a tensor as a buffer under a fresh name and return its get_attr node, placed before ``before``."""
    unique, count = name.replace(".", "_"), 0
    while hasattr(module, unique):
        count += 1
        unique = f"{name.replace('.', '_')}_{count}"
    module.register_buffer(unique, value.detach())
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(unique)
    node.meta["val"] = value.detach()
    return node


def user_module(node: fx.Node) -> str:
    """Path of the innermost user module that made a node, "" where unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def user_line(node: fx.Node) -> str:
    """The user's own source line that made a node: the innermost frame outside of torch itself, "" where unknown."""
    lines = str(node.meta.get("stack_trace") or "").splitlines()
    frames = [(head.strip(), code.strip()) for head, code in zip(lines[::2], lines[1::2], strict=False)]
    own = [frame for frame in frames if "/torch/" not in frame[0]]
    return f"{own[-1][0]}: {own[-1][1]}" if own else ""
