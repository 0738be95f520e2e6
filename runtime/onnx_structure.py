"""The structure of an exported model's outputs, with arrays as leaves. Imports no torch (`runtime.structure` does)."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Sequence
from typing import Any


def restore(data: Any, leaves: Sequence[Any]) -> Any:
    """The structure that `runtime.structure.structure_data` described, with these leaves.

    Named tuples and dataclasses of the model's own become classes of the same name and fields.
    """
    if isinstance(data, int):
        return leaves[data]
    tag, content = next(iter(data.items()))
    if tag in ("list", "tuple"):
        items = [restore(item, leaves) for item in content]
        return items if tag == "list" else tuple(items)
    if tag in ("dict", "OrderedDict"):
        named = [(_key(key), restore(item, leaves)) for key, item in content]
        return dict(named) if tag == "dict" else OrderedDict(named)
    if tag == "return_types":
        return tuple(restore(item, leaves) for item in data["items"])
    if tag not in ("namedtuple", "dataclass"):
        raise ValueError(f"{tag!r} is no structure")
    names = [name for name, _ in data["items"]]
    values = [restore(item, leaves) for _, item in data["items"]]
    made: Any = namedtuple(content, names) if tag == "namedtuple" else dataclasses.make_dataclass(content, names)
    return made(*values)


def _key(data: Any) -> Any:
    """A dict's key: plain data, or a tuple of it."""
    if isinstance(data, dict) and "tuple" in data:
        return tuple(_key(item) for item in data["tuple"])
    return float(data["float"]) if isinstance(data, dict) else data
