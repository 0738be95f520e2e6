"""One call of an op on its way to ONNX, and the registry of lowerings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from onnx import TensorProto
from torch import Tensor

from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx.geometry import Place
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.weights import Array, values_of

DTYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE, torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.FLOAT,  # NumPy has no such type, and hardly any runtime computes in it
    torch.bool: TensorProto.BOOL, torch.uint8: TensorProto.UINT8, torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16, torch.int32: TensorProto.INT32, torch.int64: TensorProto.INT64,
}  # fmt: skip


def dtype_of(dtype: torch.dtype) -> int:
    """ONNX's number of a type."""
    if dtype not in DTYPES:
        raise OnnxExportError(f"values of type {dtype} can't be exported; allowed are {', '.join(map(str, DTYPES))}")
    return DTYPES[dtype]


def array_of(value: Tensor) -> Array:
    """A tensor's values."""
    dtype_of(value.dtype)
    return values_of(value)


def computed(dtype: torch.dtype) -> torch.dtype:
    """The type that values have once exported: bfloat16 becomes float32."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def name_of_type(dtype: torch.dtype) -> str:
    """NumPy's name of the type that values have once exported."""
    return str(computed(dtype)).removeprefix("torch.")


@dataclass(frozen=True)
class Value:
    """A tensor (or a size, int64 of rank 0) in the graph; ``shape`` has None where sizes differ from batch to batch.

    ``factor`` is a number that a size is known to be a multiple of.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    factor: int = 1

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def known(self, dim: int) -> int:
        """The size of a dimension that is the same for all batches."""
        size = self.shape[dim]
        if size is None:
            raise OnnxExportError(f"the size of dimension {dim} of {self.name} differs from batch to batch")
        return size


@dataclass(frozen=True)
class Call:
    """A call, its arguments by the schema's names with defaults filled in; tensors and sizes are `Value`s.

    Attributes:
        graph: Where to.
        op: As ``aten.conv2d.default``.
        args: The arguments.
        results: Type and shape of each result.
        label: For the names of the nodes.
        place: Of an op on windows: where its read takes them.
    """

    graph: Graph
    op: str
    args: Mapping[str, Any]
    results: tuple[Value, ...]
    label: str
    place: Place | None = None

    def __getitem__(self, name: str) -> Any:
        """An argument."""
        return self.args[name]

    @property
    def out(self) -> Value:
        """The only result."""
        return self.results[0]

    @property
    def x(self) -> Value:
        """The first argument, a tensor."""
        first = next(iter(self.args.values()))
        assert isinstance(first, Value)
        return first

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or the default where it is None or there is none."""
        value = self.args.get(name)
        return default if value is None else value

    def ints(self, name: str, axes: int, default: int | Sequence[int] = 1) -> list[int]:
        """An argument with one integer per axis; a single one serves all axes, an empty list means ``default``."""
        value = self.args.get(name)
        if value is None or (isinstance(value, (list, tuple)) and not value):
            value = default
        values = [value] if isinstance(value, int) else list(value)
        return values * axes if len(values) == 1 else values

    def dims(self, name: str, rank: int) -> list[int]:
        """An argument that names dimensions, as non-negative numbers; all of them if it names none."""
        value = self.args.get(name)
        given = range(rank) if value is None or value == [] else [value] if isinstance(value, int) else value
        return [dim % rank for dim in given]

    def do(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The result of a node."""
        return self.graph.op(kind, *inputs, name=self.label, **attributes)

    def tensor(self, value: Any, dtype: torch.dtype) -> str:
        """A tensor or number as a value of some type."""
        if isinstance(value, Value):
            return value.name if value.dtype == dtype else self.cast(value.name, dtype)
        if isinstance(value, Tensor):
            return self.graph.constant(array_of(value.to(dtype)))
        return self.graph.constant(array_of(torch.tensor(value, dtype=dtype)))

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """A value of another type."""
        return self.do("Cast", name, to=dtype_of(dtype))

    def number(self, value: complex, like: str | None = None) -> str:
        """A number of the result's type."""
        return self.tensor(value, self.out.dtype)

    def size(self, value: Value, dim: int) -> str:
        """The size of one dimension, int64 [1]."""
        return self.sizes(value, dim, dim + 1)

    def sizes(self, value: Value, first: int = 0, last: int | None = None) -> str:
        """Sizes of some dimensions, int64 [n]: constants where they are known."""
        last = value.rank if last is None else last
        part = value.shape[first:last]
        if all(size is not None for size in part):
            return self.graph.ints(*(size for size in part if size is not None))
        return self.graph.op("Shape", value.name, start=first, end=last)

    def join(self, *parts: str | Sequence[int]) -> str:
        """One list of integers of several."""
        names = [part if isinstance(part, str) else self.graph.ints(*part) for part in parts if len(part)]
        return names[0] if len(names) == 1 else self.graph.op("Concat", *names, axis=0)

    def shape(self, sizes: Sequence[Any]) -> str:
        """A list of integers and sizes, int64 [n]."""
        if all(isinstance(size, int) for size in sizes):
            return self.graph.ints(*sizes)
        parts = [[s] if isinstance(s, int) else self.graph.op("Reshape", s.name, self.graph.ints(-1)) for s in sizes]
        return self.join(*parts)

    def reshape(self, name: str, shape: str) -> str:
        """A value in another shape."""
        return self.do("Reshape", name, shape)

    def count(self, value: Value, dims: Sequence[int], dtype: torch.dtype) -> str:
        """How many cells some dimensions have together, as a number of some type."""
        if all(value.shape[dim] is not None for dim in dims):
            return self.tensor(float(prod(value.known(dim) for dim in dims)), dtype)
        sizes = self.join(*(self.size(value, dim) for dim in dims))
        return self.cast(self.graph.op("ReduceProd", sizes, keepdims=0), dtype)


Lowering: TypeAlias = Callable[[Call], "str | tuple[str, ...]"]

LOWERINGS: dict[str, Lowering] = {}


def lowers(*ops: str) -> Callable[[Lowering], Lowering]:
    """Register a lowering for ops, named with their overload."""

    def register(function: Lowering) -> Lowering:
        for op in ops:
            assert op not in LOWERINGS, f"two lowerings for {op}"
            LOWERINGS[op] = function
        return function

    return register
