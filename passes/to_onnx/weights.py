"""The weights of all exported models in one file: each value once, wherever it is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from kcompile.core.onnx_files import WEIGHTS

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
        self._parts: list[bytes] = []
        self._size = 0

    def initializer(self, name: str, value: npt.NDArray[np.generic]) -> TensorProto:
        """An initialiser of this value, by reference if it is large."""
        value = np.asarray(value, order="C")
        if self._inside or value.nbytes <= INLINE_BYTES:
            return numpy_helper.from_array(value, name)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
            dims=value.shape,
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": WEIGHTS, "offset": str(self._place(value)), "length": str(value.nbytes)}
        for key, entry in entries.items():
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=entry))
        return tensor

    def _place(self, value: npt.NDArray[np.generic]) -> int:
        """Where the bytes of a value begin in the file."""
        data = value.tobytes()
        digest = hashlib.sha256(data).digest()
        if digest not in self._places:
            gap = -self._size % (_PAGE if len(data) >= _PAGE else 64)
            self._parts += [bytes(gap), data]
            self._places[digest] = self._size + gap
            self._size += gap + len(data)
        return self._places[digest]

    def write(self, path: Path) -> None:
        """Write the file, also where it is empty."""
        with path.open("wb") as file:
            file.writelines(self._parts)
