"""What an analysis says: multiply-adds in full and incrementally per layer, their ratios, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf
from operator import add

from kcompile.core.plan import Placement


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a layer or a model, per image or query.

    Attributes:
        full: Of a full inference, ``Q`` of eq. 10-11.
        krypton: Of one query with Krypton's worst-case boxes, ``Q_inc`` of eq. 12-13.
        own: Of one query with each position's own box, the mean over the map.
        placed: As ``own``, but in full where the compiler places the layer dense.
    """

    full: int
    krypton: float
    own: float
    placed: float

    def __add__(self, other: Work) -> Work:
        """Sum over layers (eq. 11 and 13)."""
        sums = (getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__)
        return Work(*sums)

    @property
    def krypton_speedup(self) -> float:
        """Theoretical speedup ``Q / Q_inc`` with worst-case boxes (eq. 14)."""
        return _ratio(self.full, self.krypton)

    @property
    def own_speedup(self) -> float:
        """Theoretical speedup with each position's own box."""
        return _ratio(self.full, self.own)

    @property
    def placed_speedup(self) -> float:
        """Theoretical speedup with own boxes under the compiler's placement."""
        return _ratio(self.full, self.placed)

    @property
    def krypton_redundancy(self) -> float:
        """Share ``1 - Q_inc / Q`` of a full inference that repeats the base's work, with worst-case boxes."""
        return 1 - 1 / self.krypton_speedup

    @property
    def own_redundancy(self) -> float:
        """Share of a full inference that repeats the base's work, with each position's own box."""
        return 1 - 1 / self.own_speedup


@dataclass(frozen=True)
class LayerAnalysis:
    """One node of the canonical graph (batch norm folded, no-ops dropped).

    Attributes:
        name: Name in the graph.
        module: Path of the user's module that made it, "" where unknown.
        op: ATen name with overload.
        rule: The spatial rule that answered.
        shape: (channels, *sizes) of its output.
        placement: Where the compiler runs it.
        reason: Why it is not incremental, "" where it is.
        krypton_extent: Worst-case cells per axis; the whole tensor where no rule bounds the region.
        own_extent: Mean cells per axis over the map; likewise.
        work: Multiply-adds; 0 for layers without weights.
    """

    name: str
    module: str
    op: str
    rule: str
    shape: tuple[int, ...]
    placement: Placement
    reason: str
    krypton_extent: tuple[int, ...]
    own_extent: tuple[float, ...]
    work: Work


@dataclass(frozen=True)
class Analysis:
    """What a patch leaves unchanged in a model; printing it shows a table.

    Attributes:
        input_shape: (channels, *sizes) of the image.
        patch_shape: Pixels per axis.
        stride: Distance of the map's positions, in pixels.
        positions: How many positions the own boxes are averaged over.
        layers: One row per node, in topological order.
    """

    input_shape: tuple[int, ...]
    patch_shape: tuple[int, ...]
    stride: int
    positions: int
    layers: tuple[LayerAnalysis, ...]

    @property
    def total(self) -> Work:
        """Convolutions and fully connected layers, the latter in full: what Krypton's figure 3 counts."""
        return _sum(layer.work for layer in self.layers)

    @property
    def convolutions(self) -> Work:
        """Convolutions alone; higher speedups where fully connected layers weigh much (VGG16, AlexNet)."""
        return _sum(layer.work for layer in self.layers if layer.op.startswith("aten.conv"))

    def __str__(self) -> str:
        """The table: a line per layer except pointwise ones, then the totals."""
        return "\n".join(_lines(self))


def _sum(works: Iterable[Work]) -> Work:
    return reduce(add, works, Work(0, 0.0, 0.0, 0.0))


def _ratio(full: float, part: float) -> float:
    """Full over part; 1 where there is no work at all, infinite where none is left."""
    return full / part if part else inf if full else 1.0


def _lines(analysis: Analysis) -> Iterator[str]:
    shown = [layer for layer in analysis.layers if layer.work.full or layer.rule != "pointwise"]
    head = ("layer", "op", "shape", "MMACs", "placement", "Krypton", "own boxes", "speedup", "own")
    rows = [head, *map(_row, shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield f"image {_by(analysis.input_shape)}, patch {_by(analysis.patch_shape)}, {analysis.positions} positions"
    for row in rows:
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    hidden = len(analysis.layers) - len(shown)
    yield f"({hidden} pointwise layers have the extents of their inputs' hull)"
    for name, work in (("all layers", analysis.total), ("convolutions alone", analysis.convolutions)):
        yield (
            f"{name}: {work.full / 1e6:.1f} MMACs in full; speedup {work.krypton_speedup:.2f} (Krypton's worst case), "
            f"{work.own_speedup:.2f} (own boxes), {work.placed_speedup:.2f} (own boxes, as placed)"
        )


def _row(layer: LayerAnalysis) -> tuple[str, ...]:
    work = layer.work
    speedups = (f"{work.krypton_speedup:.2f}", f"{work.own_speedup:.2f}") if work.full else ("", "")
    return (
        layer.module or layer.name,
        layer.op.removeprefix("aten.").removesuffix(".default"),
        _by(layer.shape),
        f"{work.full / 1e6:.2f}" if work.full else "",
        layer.placement,
        _by(layer.krypton_extent),
        "x".join(f"{size:.1f}" for size in layer.own_extent),
        *speedups,
    )


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
