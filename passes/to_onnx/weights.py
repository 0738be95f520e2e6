"""The weights of all exported models in one file: each value once, wherever it is used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from kcompile.core.onnx_files import WEIGHTS

Array: TypeAlias = npt.NDArray[Any]

INLINE_BYTES = 1024  # smaller values stay in the models
_PAGE = 4096  # large values begin at a page, so that runtimes can map the file into memory


class Weights:
    """Collects values as initialisers that refer to one file.

    The same bytes get the same place in the file: models that share a weight share its place, and so do the graph and
    the body of a loop within one model.
    """

    def __init__(self, inside: bool = False) -> None:
        """Begin an empty file; ``inside`` keeps all values in the models instead."""
        self._inside = inside
        self._places: dict[bytes, int] = {}
        self._parts: list[tuple[int, Array]] = []  # cells left free before each value
        self._size = 0
        self._tensors: dict[tuple[Any, ...], tuple[Tensor, Array, bytes]] = {}

    def read(self, value: Tensor) -> tuple[Array, bytes]:
        """A tensor's values and their digest; of each tensor once, however many models hold it."""
        key = (value.data_ptr(), value.dtype, value.device, tuple(value.shape), value.stride())
        if key not in self._tensors:
            array = values_of(value)
            self._tensors[key] = value, array, digest(array)  # the tensor is held: its place stays its own
        return self._tensors[key][1:]

    def initializer(self, name: str, value: Array, known: bytes) -> TensorProto:
        """An initialiser of this value (contiguous, of the given digest), by reference if it is large."""
        if self._inside or value.nbytes <= INLINE_BYTES:
            return numpy_helper.from_array(value, name)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
            dims=value.shape,
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": WEIGHTS, "offset": str(self._place(value, known)), "length": str(value.nbytes)}
        for key, entry in entries.items():
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=entry))
        return tensor

    def _place(self, value: Array, known: bytes) -> int:
        """Where the bytes of a value begin in the file."""
        if known not in self._places:
            gap = -self._size % (_PAGE if value.nbytes >= _PAGE else 64)
            self._parts.append((gap, value))
            self._places[known] = self._size + gap
            self._size += gap + value.nbytes
        return self._places[known]

    def write(self, path: Path) -> None:
        """Write the file, also where it is empty."""
        with path.open("wb") as file:
            for gap, value in self._parts:
                file.write(bytes(gap))
                file.write(value.reshape(-1).view(np.uint8).data)


def values_of(value: Tensor) -> Array:
    """A tensor's values; those of bfloat16 in float32."""
    kept = value.detach().cpu().contiguous()
    array: Array = (kept.float() if kept.dtype == torch.bfloat16 else kept).numpy()
    return array


def digest(value: Array) -> bytes:
    """A number of the bytes of a contiguous array."""
    return hashlib.sha256(value.reshape(-1).view(np.uint8).data).digest()
