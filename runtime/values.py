"""Values as JSON and tensors: what graphs hold as arguments, and models as constant outputs.

Nothing here runs code that a file names: the kinds of values are a closed list, and tensors are kept beside the JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, fx, nn

from kcompile.core.errors import SaveError

# Kinds that stand for themselves by a name: tag, type, name of a value, value of a name.
_NAMED: tuple[tuple[str, type, Callable[[Any], str]], ...] = (
    ("dtype", torch.dtype, lambda value: str(value).removeprefix("torch.")),
    ("layout", torch.layout, lambda value: str(value).removeprefix("torch.")),
    ("memory_format", torch.memory_format, lambda value: str(value).removeprefix("torch.")),
    ("device", torch.device, str),
)


class Writer:
    """Turns values into JSON data; collects tensors, each once however many graphs share it."""

    def __init__(self) -> None:
        """Nothing collected yet."""
        self.tensors: list[Tensor] = []
        self._known: dict[tuple[Any, ...], int] = {}

    def data(self, value: Any) -> Any:
        """JSON data of a value.

        Raises:
            SaveError: The value is of a kind that files can't hold.
        """
        if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and isfinite(value)):
            return value
        for tag, kind, name in _NAMED:
            if isinstance(value, kind):
                return {tag: name(value)}
        if isinstance(value, float):
            return {"float": repr(value)}
        if isinstance(value, complex):
            return {"complex": [self.data(value.real), self.data(value.imag)]}
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, Tensor):
            return {"tensor": self.tensor(value), "parameter": isinstance(value, nn.Parameter)}
        if isinstance(value, slice):
            return {"slice": [self.data(part) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, (list, tuple)):
            items = [self.data(item) for item in value]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, dict):
            return {"dict": [[self.data(key), self.data(item)] for key, item in value.items()]}
        raise SaveError(f"can't save a value of type {type(value).__name__} ({value!r:.80})")

    def tensor(self, value: Tensor) -> int:
        """Index of a tensor among those that are saved."""
        if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
            raise SaveError(f"can't save a tensor of type {type(value).__name__} and layout {value.layout}")
        key = (value.data_ptr(), value.dtype, value.device, value.shape, value.stride())
        if key not in self._known:
            self._known[key] = len(self.tensors)
            kept = value.detach().cpu()
            larger = kept.untyped_storage().nbytes() > kept.numel() * kept.element_size()
            self.tensors.append(kept.clone() if larger else kept)  # torch.save writes the whole storage
        return self._known[key]


class Reader:
    """Turns JSON data back into values."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Take what `Writer` collected."""
        self.tensors = tensors
        self._parameters: dict[int, nn.Parameter] = {}
        self._kinds: dict[str, Callable[[Any, Any], Any]] = {
            "float": lambda data, _: float(data["float"]),
            "complex": lambda data, _: complex(*(self.value(part) for part in data["complex"])),
            "node": lambda data, nodes: nodes[data["node"]],
            "tensor": lambda data, _: self.tensor(data),
            "slice": lambda data, nodes: slice(*(self.value(part, nodes) for part in data["slice"])),
            "tuple": lambda data, nodes: tuple(self.value(item, nodes) for item in data["tuple"]),
            "dict": lambda data, nodes: {self.value(k): self.value(item, nodes) for k, item in data["dict"]},
            "device": lambda data, _: torch.device(data["device"]),
        }

    def value(self, data: Any, nodes: dict[str, fx.Node] | None = None) -> Any:
        """The value of JSON data; ``nodes`` are those that it may name."""
        if isinstance(data, list):
            return [self.value(item, nodes) for item in data]
        if not isinstance(data, dict):
            return data
        tag = next(iter(data))
        if tag in self._kinds:
            return self._kinds[tag](data, nodes or {})
        kind = next(kind for name, kind, _ in _NAMED if name == tag)
        value = getattr(torch, data[tag])
        if not isinstance(value, kind):
            raise ValueError(f"torch.{data[tag]} is no {tag}")
        return value

    def tensor(self, data: dict[str, Any]) -> Tensor:
        """A tensor, or the one parameter made of it."""
        index: int = data["tensor"]
        value = self.tensors[index]
        if not data["parameter"]:
            return value
        if index not in self._parameters:
            self._parameters[index] = nn.Parameter(value, requires_grad=False)
        return self._parameters[index]
