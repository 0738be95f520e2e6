"""Materializing: base images through the whole model, with what queries will read put away as soon as it is made.

So the base tensors are never held twice, and a batch of images can run in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.core.plan import Plan
from kcompile.runtime.autocast import autocast_dtype
from kcompile.runtime.base_store import new_store, put, stored_shape
from kcompile.runtime.metering import Footprint, Meter, empty_rows, footprint
from kcompile.runtime.queries import is_finite


@dataclass
class Filling:
    """Takes the base tensors of a run in parts, while it goes on.

    Attributes:
        plan: Names them.
        rows: Number of all base images.
        first: The first row of the part that runs.
        tensors: What was stored, by name.
        on_host: True while all that was looked at on the host was finite.
        sums: Of base tensors on a GPU, which isn't waited for.
    """

    plan: Plan
    rows: int
    first: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    on_host: bool = True
    sums: list[Tensor] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        """False if a base tensor had NaN or infinite values."""
        return self.on_host and (not self.sums or is_finite(torch.stack(self.sums)))

    def take(self, index: int, source: Tensor) -> None:
        """Store the part's rows of a base tensor, or the whole of a constant."""
        base = self.plan.bases[index]
        if base.name not in self.tensors:
            self.tensors[base.name] = new_store(base, source, self.rows if base.batched else 1)
        elif not base.batched:
            return
        put(base, self.tensors[base.name], source, self.first)
        if source.is_cuda and base.batched and source.is_floating_point():
            self.sums.append(source.sum(dtype=torch.float64))  # one that overflows would be no error: slower graphs run
        else:
            self.on_host = self.on_host and (not base.batched or is_finite(source))


@dataclass
class Counting(Filling):
    """Stands in for a filling where a run is metered: it counts what would be stored.

    Attributes:
        meter: Of the run.
        dtypes: The types of the base tensors, by name.
        constants: Bytes of base tensors that are the same for all images.
    """

    meter: Meter = field(default_factory=Meter)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    constants: int = 0

    def take(self, index: int, source: Tensor) -> None:
        """Count the rows."""
        base = self.plan.bases[index]
        size = prod(stored_shape(base, 1)) * source.element_size()
        self.dtypes[base.name] = source.dtype
        if base.batched:
            self.meter.kept += len(source) * size
        else:
            self.constants += size
        folds = len(base.axes) + 1 < len(base.shape)  # several dimensions of channels: joining them can be a copy
        self.meter.note(source.numel() * source.element_size() if folds else 0)


@dataclass(frozen=True)
class MaterializeNeeds:
    """What a run takes.

    Attributes:
        run: Its memory.
        dtypes: The types of the base tensors, by name.
        constants: Bytes of base tensors that are the same for all images.
        image: Bytes of a row of the inputs.
    """

    run: Footprint
    dtypes: dict[str, torch.dtype]
    constants: int
    image: int

    @property
    def row(self) -> int:
        """Bytes that are kept of each image: base tensors, inputs, and the output twice (the user may write to his)."""
        return self.run.kept_in_all + self.image + 2 * self.run.outputs

    def peak(self, images: int, at_once: int) -> int:
        """Most bytes at any time, if so many images are materialised some at a time."""
        beside = self.constants + images * (self.image + 2 * self.run.outputs)
        later = images * self.run.kept_in_all + self.run.peak(at_once) if at_once < images else 0
        return beside + max(self.run.peak(at_once, images), later)


def keep(filling: Filling, index: int, source: Tensor) -> None:
    """Called by the graph wherever a base tensor is made."""
    filling.take(index, source)


class Materializer:
    """Runs a materialize graph.

    Attributes:
        graph_module: (filling, images, …) -> the model's flat outputs.
    """

    def __init__(self, plan: Plan, materializer: fx.GraphModule) -> None:
        """Take a graph that gives (outputs, base tensors); weights are shared."""
        self.plan = plan
        graph = fx.Graph()
        copied: Any = graph.graph_copy(materializer.graph, val_map={})
        outputs, sources = copied
        first = next(iter(graph.nodes), None)
        with graph.inserting_before(first):
            filling = graph.placeholder("filling")
        for index, source in enumerate(sources):
            after = source if source.op != "placeholder" else graph.find_nodes(op="placeholder")[-1]
            with graph.inserting_after(after):
                graph.call_function(keep, (filling, index, source))
        graph.output(outputs)
        self.graph_module = fx.GraphModule(materializer, graph, "Storing")
        self._needs: dict[torch.dtype | None, MaterializeNeeds] = {}

    def run(
        self, images: Tensor, others: Sequence[Tensor] = (), at_once: int | None = None, rows: Sequence[bool] = ()
    ) -> tuple[dict[str, Tensor], list[Any], bool]:
        """The base tensors of images, the flat outputs, and whether all base tensors are finite.

        Args:
            images: [B, C, *sizes].
            others: The other inputs that have a row for each of them.
            at_once: Images per run; default: all.
            rows: For each output, whether it has a row per image; needed where images run in parts.
        """
        filling = Filling(self.plan, len(images))
        count = at_once or len(images)
        parts = []
        for first in range(0, len(images), count):
            filling.first = first
            part = slice(first, first + count)
            parts.append(self.graph_module(filling, images[part], *(other[part] for other in others)))
        flat = list(parts[0])
        for index, has_rows in enumerate(rows if len(parts) > 1 else ()):
            if has_rows:
                flat[index] = torch.cat([part[index] for part in parts])
        return filling.tensors, flat, filling.finite

    def needs(self, rows: Sequence[Tensor]) -> MaterializeNeeds:
        """What a run takes; ``rows`` has one row of the images and of each other input with rows."""
        autocast = autocast_dtype(rows[0].device)
        if autocast not in self._needs:
            self._needs[autocast] = self._metered(rows)
        return self._needs[autocast]

    def _metered(self, rows: Sequence[Tensor]) -> MaterializeNeeds:
        counting: list[Counting] = []

        def make(count: int) -> list[Any]:
            return empty_rows(rows, count)

        def run(arguments: list[Any], meter: Meter) -> Any:
            counting.append(Counting(self.plan, len(arguments[0]), meter=meter))
            return self.graph_module(counting[-1], *arguments)

        run_needs = footprint(make, run)
        image = sum(like[:1].numel() * like.element_size() for like in rows)
        return MaterializeNeeds(run_needs, counting[-1].dtypes, counting[-1].constants, image)
