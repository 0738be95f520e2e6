"""What tells a map's kind from others, as text: digests of models and fills, of users' functions and all they read.

A certificate is for one kind of map (`kcompile.tuning.Kind`). So nothing that changes a map may be left out of these
texts; what can't be told from others is refused.
"""

from __future__ import annotations

import dis
import hashlib
import re
import sys
from collections.abc import Iterator
from functools import partial
from numbers import Number
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload, OpOverloadPacket

from kcompile.core.errors import InputError
from kcompile.runtime.module import IncrementalModule
from kcompile.scoring import Score
from kcompile.targets import Targets, several

LENGTH = 16  # hexadecimal digits of a digest


def model_text(inc: IncrementalModule) -> str:
    """Of a compiled module: its plan, the ops of its graph with their constants, and all bits of its weights.

    Where it is doesn't matter: moves between devices keep the bits.
    """
    digest = hashlib.sha256(str(inc.plan).encode())
    for module in inc.materializer.modules():
        if isinstance(module, fx.GraphModule):
            for part in _graph_parts(module):
                digest.update(part)
    return digest.hexdigest()[:LENGTH]


def _graph_parts(module: fx.GraphModule) -> Iterator[bytes]:
    for node in module.graph.nodes:
        target = node.target if isinstance(node.target, str) else _function_name(node.target)
        text = f"{node.name} {node.op} {target} {node.args} {node.kwargs}"
        yield re.sub(r"device\(type=[^)]*\)| at 0x[0-9a-f]+", "", text).encode()
        if node.op == "get_attr":
            value: Any = module
            for name in node.target.split("."):
                value = getattr(value, name)
            if isinstance(value, Tensor):
                yield _bits(value)


def _function_name(function: Any) -> str:
    named = hasattr(function, "__qualname__")  # ops of torch.ops are told by their text
    return f"{function.__module__}.{function.__qualname__}" if named else str(function)


def score_text(score: Score) -> str:
    """A score's name and, of a user's function, a digest of its code and of all that this reads.

    Raises:
        InputError: It reads something that can't be told from others.
    """
    if isinstance(score, str):
        return score
    digest = hashlib.sha256()
    try:
        for part in _parts(score, {}):
            digest.update(part)
    except _UntoldError as error:
        raise InputError(
            f'score is, or reads, {error}, which can\'t be told from others; allowed with a tuning are "probability", '
            '"logit", and functions that read numbers, texts, tensors, modules, functions and collections of these'
        ) from None
    name = getattr(score, "__qualname__", type(score).__qualname__)
    return f"{score.__module__}.{name} {digest.hexdigest()[:LENGTH]}"


class _UntoldError(Exception):
    """A value of which nothing tells what it does."""


Seen: TypeAlias = dict[int, int]
"""When a function or object was met, by its id: these may refer to one another, in circles too."""


def _parts(value: Any, seen: Seen) -> Iterator[bytes]:
    """All that tells a value from others; modules and classes by their names, libraries' functions by name and code."""
    yield type(value).__qualname__.encode()
    if value is None or value is ... or isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif isinstance(value, Tensor):
        yield _bits(value)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype} {value.shape}".encode() + value.tobytes()
    elif isinstance(value, dict):
        yield from _parts(list(value.items()), seen)
    elif isinstance(value, (list, tuple)):
        yield str(len(value)).encode()
        for held in value:
            yield from _parts(held, seen)
    elif isinstance(value, (set, frozenset)):
        yield repr(sorted(map(repr, value))).encode()
    elif isinstance(value, CodeType):
        yield value.co_code + repr((value.co_names, value.co_varnames, value.co_freevars)).encode()
        yield from _parts(value.co_consts, seen)
    elif isinstance(value, (type, ModuleType, BuiltinFunctionType, OpOverload, OpOverloadPacket)):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}".encode()
    elif id(value) in seen:
        yield str(seen[id(value)]).encode()
    else:
        seen[id(value)] = len(seen)
        yield from _parts(_inside(value), seen)


def _inside(value: Any) -> Any:
    """What a function or an object consists of."""
    if isinstance(value, FunctionType):
        captured = [cell.cell_contents for cell in value.__closure__ or ()]
        own = (value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, captured)
        read = [] if _of_a_library(value) else sorted(_global_names(value.__code__) & value.__globals__.keys())
        return own, [(name, value.__globals__[name]) for name in read]
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, nn.Module):
        held = (value._parameters, value._buffers, value._modules)
        others = {name: kept for name, kept in vars(value).items() if not name.startswith("_")}
        return repr(value), held, others, type(value).forward
    if not hasattr(value, "__dict__") or hasattr(type(value), "__slots__") or type(value).__module__ == "_io":
        raise _UntoldError(f"a {type(value).__module__}.{type(value).__qualname__}")
    return vars(value), type(value).__call__ if callable(value) else None


def _of_a_library(function: FunctionType) -> bool:
    """Whether it changes with a library's version alone."""
    package = (function.__module__ or "").partition(".")[0]
    return package in sys.stdlib_module_names or package == "torch" or "site-packages" in function.__code__.co_filename


def _global_names(code: CodeType) -> set[str]:
    """The names of globals that a function's code reads, also in functions within."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    within = (_global_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return names.union(*within)


_PLAIN = (Number, str, bytes, np.generic, range, slice, torch.dtype, torch.device)


def _bits(tensor: Tensor) -> bytes:
    whole = tensor.detach().cpu().contiguous()
    return f"{whole.dtype} {tuple(whole.shape)}".encode() + whole.flatten().view(torch.uint8).numpy().tobytes()


def target_text(target: Targets) -> str:
    """The explained classes; "predicted" for each image's most probable one."""
    if target is None:
        return "predicted"
    plain: Any = target.tolist() if hasattr(target, "tolist") else target
    return ", ".join(str(one) for one in (plain if several(target) else [plain]))
