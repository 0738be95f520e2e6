"""The structure of a model's outputs as data, also where the model's own classes do not exist.

A named tuple or dataclass of the model's code is not imported: a class of the same name and fields takes its place.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree

from kcompile.core.errors import SaveError
from kcompile.runtime.values import Reader, Writer


def structure_data(spec: pytree.TreeSpec, writer: Writer) -> Any:
    """The structure as JSON data, with the leaves numbered.

    Raises:
        SaveError: It has a class that is no dict, list, tuple, named tuple or dataclass.
    """
    try:
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    except Exception as error:
        raise SaveError(f"can't save the structure of the model's output, {spec}: {error}") from error
    return _data(tree, writer)


def read_structure(data: Any, reader: Reader) -> pytree.TreeSpec:
    """The structure that `structure_data` was given."""
    leaves, spec = pytree.tree_flatten(_tree(data, reader))
    if leaves != list(range(len(leaves))):
        raise ValueError(f"the leaves of the output's structure are {leaves}")
    return spec


def _data(tree: Any, writer: Writer) -> Any:
    kind = type(tree)
    if kind is int:
        return tree
    if kind in (list, tuple):
        return {kind.__name__: [_data(item, writer) for item in tree]}
    if kind in (dict, OrderedDict):
        items = [[writer.data(key), _data(item, writer)] for key, item in tree.items()]
        return {kind.__name__: items}
    if kind.__module__ == "torch.return_types":
        return {"return_types": kind.__name__, "items": [_data(item, writer) for item in tree]}
    if isinstance(tree, tuple) and hasattr(kind, "_fields"):
        items = [[name, _data(item, writer)] for name, item in zip(kind._fields, tree, strict=True)]
        return {"namedtuple": kind.__name__, "items": items}
    if dataclasses.is_dataclass(tree):
        fields = [field.name for field in dataclasses.fields(tree) if field.init]
        return {"dataclass": kind.__name__, "items": [[name, _data(getattr(tree, name), writer)] for name in fields]}
    raise SaveError(
        f"can't save a model that returns a {kind.__module__}.{kind.__qualname__}; allowed are dict, OrderedDict, "
        "list, tuple, named tuple and dataclass. Wrap the model so that it returns one of these, or pickle the module"
    )


def _tree(data: Any, reader: Reader) -> Any:
    if isinstance(data, int):
        return data
    tag, content = next(iter(data.items()))
    if tag in ("list", "tuple"):
        items = [_tree(item, reader) for item in content]
        return items if tag == "list" else tuple(items)
    if tag in ("dict", "OrderedDict"):
        named = [(reader.value(key), _tree(item, reader)) for key, item in content]
        return dict(named) if tag == "dict" else OrderedDict(named)
    if tag == "return_types":
        kind = getattr(torch.return_types, content)
        if not pytree.is_structseq_class(kind):
            raise ValueError(f"{content!r} is none of torch.return_types")
        return kind([_tree(item, reader) for item in data["items"]])
    if tag not in ("namedtuple", "dataclass"):
        raise ValueError(f"{tag!r} is no structure")
    names = [name for name, _ in data["items"]]
    return _substitute(tag, content, *names)(*(_tree(item, reader) for _, item in data["items"]))


@cache
def _substitute(kind: str, name: str, *fields: str) -> Any:
    """A named tuple or dataclass of that name; pickle finds it through this module's `__getattr__`."""
    made = _named_tuple(name, fields) if kind == "namedtuple" else _dataclass(name, fields)
    made.__module__, made.__qualname__ = __name__, ":".join((kind, name, *fields))
    if kind == "dataclass":
        pytree.register_dataclass(made)
    return made


def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields)


def _dataclass(name: str, fields: tuple[str, ...]) -> Any:
    return dataclasses.make_dataclass(name, fields, repr=False, namespace={"__repr__": _repr})


def _repr(outcome: Any) -> str:
    fields = ", ".join(f"{field.name}={getattr(outcome, field.name)!r}" for field in dataclasses.fields(outcome))
    return f"{type(outcome).__name__}({fields})"


def __getattr__(name: str) -> Any:
    """The class that stands in for one of the model's own."""
    kind, *rest = name.split(":")
    if kind not in ("namedtuple", "dataclass") or not rest:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _substitute(kind, *rest)
