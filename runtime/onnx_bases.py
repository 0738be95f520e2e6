"""Base images of an exported model: what is kept of each, and full inference by the same graph. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kcompile.core.errors import InputError
from kcompile.core.onnx_files import MATERIALIZE, Manifest
from kcompile.runtime.onnx_queries import as_array
from kcompile.runtime.onnx_session import Array, Sessions


@dataclass(frozen=True)
class Base:
    """What is kept of one base image.

    Attributes:
        inputs: The image [1, C, *S] and other inputs with rows, by their names in the models.
        values: The base tensors on the device, by name.
        outputs: The flat outputs.
    """

    inputs: Mapping[str, Array]
    values: Mapping[str, Any]
    outputs: list[Any]


class Materializer:
    """Runs ``materialize.onnx``."""

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        """Open the model."""
        self.sessions, self.types = sessions, manifest.data["types"]
        self.entries: list[Any] = manifest.data["outputs"]["entries"]
        self.session = sessions.open(MATERIALIZE)

    def base(self, inputs: Mapping[str, Array]) -> Base:
        """Make an image a base."""
        found = self.sessions.run(MATERIALIZE, inputs)
        outputs: list[Any] = []
        for index, entry in enumerate(self.entries):
            value = found.get(f"output_{index}")
            outputs.append(value.numpy() if value is not None else constant(entry))
        return Base(inputs, {name: value for name, value in found.items() if name.startswith("base_")}, outputs)

    def full(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The results for an image, of its own full inference, [1, …] each."""
        order = sorted((entry, index) for index, entry in enumerate(self.entries) if isinstance(entry, int))
        first = dict(reversed(order))  # of outputs that are one result the first
        names = {f"output_{index}" for index in first.values()}
        found = self.sessions.run_arrays(MATERIALIZE, inputs, names)
        return [found[f"output_{first[entry]}"] for entry in sorted(first)]

    def others(self, others: Sequence[Any], rows: int) -> dict[str, Array]:
        """The inputs with rows beside the image, by name.

        Raises:
            InputError: Another number of them, or other shapes.
        """
        names = [name for name in self.types if name != "image"]
        if len(others) != len(names):
            raise InputError(f"{len(others) + 1} inputs are given; the model takes {len(names) + 1} with rows")
        shapes = {value.name: value.shape[1:] for value in self.session.get_inputs()}
        made = {}
        for name, value in zip(names, others, strict=True):
            array = as_array(value).astype(self.types[name])
            array = array[None] if array.ndim == len(shapes.get(name, array.shape[1:])) else array
            if len(array) != rows or list(array.shape[1:]) != shapes.get(name, list(array.shape[1:])):
                raise InputError(f"{name} has shape {array.shape}; allowed is {(rows, *shapes[name])}")
            made[name] = array
        return made


def constant(entry: Any) -> Any:
    """An output that is the same for all images."""
    if isinstance(entry, dict) and "values" in entry:
        return np.array(entry["values"], dtype=entry["dtype"])
    return entry["constant"] if isinstance(entry, dict) else None


def joined(rows: Sequence[Any]) -> Any:
    """One output of several base images; what is no array is the same for all."""
    return np.concatenate(rows) if isinstance(rows[0], np.ndarray) and rows[0].ndim else rows[0]
