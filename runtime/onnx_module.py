"""An exported model with the calls of `IncrementalModule`, on ONNX Runtime and NumPy. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from kcompile.core.errors import InputError, NotMaterializedError
from kcompile.core.interval import IntArray, Interval
from kcompile.core.onnx_files import HEATMAP, INCREMENTAL, MATERIALIZE, Manifest
from kcompile.core.plan import Placement, Plan
from kcompile.core.region import Region
from kcompile.runtime.onnx_queries import ArrayBox, as_array, paste, pixels, read_base_index, read_boxes, read_images
from kcompile.runtime.onnx_regions import ArrayRegions
from kcompile.runtime.onnx_session import Array, Sessions
from kcompile.runtime.onnx_structure import restore
from kcompile.runtime.scheduler import schedule

BATCH = 32
DENSE_BYTES = 64 << 20  # of a batch's largest dense tensor: more leaves the caches, and takes memory anew each time
# What one more batch costs: geometry and the calls of some 10 nodes per layer; two cores do 100 multiply-adds a ns.
OVERHEAD_MACS_PER_LAYER = 1e7


@dataclass(frozen=True)
class _Base:
    """What is kept of one base image: the image and others, and the base tensors on the device."""

    inputs: dict[str, Array]
    values: dict[str, Any]
    outputs: list[Any]


class OnnxRunner:
    """Runs the two models of an export.

    Attributes:
        plan: What was decided at compile time.
        base_output: The model's output for the materialised images, or None.
        batch: Queries in one run of the incremental model.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        """Open the models."""
        self.plan: Plan = manifest.plan
        self.sessions, self.data = sessions, manifest.data
        self.base_output: Any = None
        self.batch = fitting_batch(manifest.plan)
        self._bases: list[_Base] = []
        for name in (MATERIALIZE, INCREMENTAL):
            sessions.open(name)

    @property
    def provider(self) -> str:
        """The provider of ONNX Runtime that runs the models, as "CPUExecutionProvider"."""
        return self.sessions.provider

    @property
    def preprocessing(self) -> Any:
        """What was noted at export."""
        return self.data["preprocessing"]

    def materialize(self, image: Any, *others: Any) -> Any:
        """Run the model once on base images and keep what queries will read, on the device.

        Args:
            image: One image [C, *S] or several [B, C, *S]: arrays, or tensors that NumPy can read.
            *others: Of a model with several inputs: those with rows, in their order; of a lone image without batch.

        Returns:
            The model's output for the batch, arrays in the model's own structure.

        Raises:
            InputError: Wrong shape or type.
        """
        images = read_images(image, self.plan, self.data["dtype"])
        rows = self._others(others, len(images))
        self._bases = [self._materialized({"image": images[i : i + 1], **{k: v[i : i + 1] for k, v in rows.items()}})
                       for i in range(len(images))]  # fmt: skip
        leaves = [_joined(column) for column in zip(*(base.outputs for base in self._bases), strict=True)]
        self.base_output = restore(self.data["outputs"]["structure"], leaves)
        return self.base_output

    def forward_patches(
        self,
        patches: Any,
        positions: Any,
        *,
        base_index: Any = None,
        mask: Any = None,
        channels: Any = None,
        output: Literal["full", "region"] = "full",
    ) -> Any:
        """The model's output for patched copies of the base images; arguments as `IncrementalModule.forward_patches`.

        Returns:
            The model's output structure for N images, arrays; with "region" outputs that are maps as `ArrayRegion`s.

        Raises:
            NotMaterializedError: No base image yet.
            InputError, PositionError: Bad patches or positions.
        """
        if output not in ("full", "region"):
            raise InputError(f'output is {output!r}; allowed are "full" and "region"')
        boxes, which, images = self._queries(patches, positions, base_index, mask, channels)
        regions = ArrayRegions(self.plan, self._hull(boxes)) if output == "region" else None
        results: list[Array] | None = None
        count = len(which)
        for rows, whole in self._run(boxes, which, images):
            outputs = whole if regions is None else regions.cut(rows, whole)
            if results is None:
                results = [np.empty((count, *out.shape[1:]), dtype=out.dtype) for out in outputs]
            for into, out in zip(results, outputs, strict=True):
                into[rows] = out
        if results is None:
            results = self._none() if regions is None else regions.cut(np.zeros(0, np.int64), self._none())
        return self.restore(results if regions is None else regions.wrap(results))

    def stream_patches(
        self, patches: Any, positions: Any, *, base_index: Any = None, mask: Any = None, channels: Any = None
    ) -> Iterator[tuple[IntArray, list[Array], int]]:
        """As `forward_patches`, batch by batch: indices of the queries, their results, number of all queries."""
        boxes, which, images = self._queries(patches, positions, base_index, mask, channels)
        for rows, outputs in self._run(boxes, which, images):
            yield rows, outputs, len(which)

    def _queries(
        self, patches: Any, positions: Any, base_index: Any, mask: Any, channels: Any
    ) -> tuple[list[ArrayBox], IntArray, Array]:
        """The boxes of a call's queries, which base each is a copy of, and the base images."""
        if not self._bases:
            raise NotMaterializedError("no base image yet: call materialize(image) before forward_patches")
        boxes = read_boxes(self.plan, self.data["dtype"], patches, positions, mask, channels)
        count = len(boxes[0].positions)
        which = read_base_index(base_index, count, len(self._bases))
        return boxes, which, np.concatenate([base.inputs["image"] for base in self._bases])

    def _hull(self, boxes: Sequence[ArrayBox]) -> Region:
        """The box around all boxes of each query, clipped to the image."""
        axes = []
        for axis, size in enumerate(self.plan.input_shape[1:]):
            low = np.min([box.positions[:, axis] for box in boxes], axis=0)
            high = np.max([box.positions[:, axis] + box.sizes[axis] for box in boxes], axis=0)
            axes.append(Interval.of(low.clip(0, size), high.clip(0, size)))
        return Region.of(*axes)

    def restore(self, results: Sequence[Any]) -> Any:
        """Put flat results into the structure that the model returns."""
        leaves = []
        for index, entry in enumerate(self.data["outputs"]["entries"]):
            if entry == "base":
                leaves.append(_joined([base.outputs[index] for base in self._bases]))
            else:
                leaves.append(results[entry] if isinstance(entry, int) else _constant(entry))
        return restore(self.data["outputs"]["structure"], leaves)

    def run_heatmap(self, image: Any, patch: Any, *, positions: Any = None, stride: Any = None) -> dict[str, Array]:
        """Run ``heatmap.onnx``: the scores of patched copies of one image.

        Args:
            image: [C, *S]; of a model with several inputs a tuple of those with rows.
            patch: [C, *sizes].
            positions: [N, axes], or None.
            stride: Pixels, one number per axis: adds a grid of positions.

        Returns:
            "scores" [N, K], "base_score" [K], "places" [N, axes].

        Raises:
            InputError: The export has no such model, or wrong shapes.
        """
        if HEATMAP not in self.data["files"]:
            raise InputError(f"this export has no {HEATMAP}: {self.data['no_heatmap']}")
        inputs = image if isinstance(image, tuple) else (image,)
        given: dict[str, Array] = {"image": read_images(inputs[0], self.plan, self.data["dtype"])}
        given |= self._others(inputs[1:], 1)
        places = np.zeros((0, len(self.plan.patch_shape)), np.int64) if positions is None else positions
        (box,) = read_boxes(self.plan, self.data["dtype"], as_array(patch), places, None, None)
        given |= {"patch": box.patches[0], "positions": box.positions}
        steps = np.zeros(len(self.plan.patch_shape)) if stride is None else as_array(stride)
        given["stride"] = np.broadcast_to(steps, (len(self.plan.patch_shape),)).astype(np.int64)
        return self.sessions.run_arrays(HEATMAP, given)

    def _others(self, others: Sequence[Any], rows: int) -> dict[str, Array]:
        names = [name for name in self.data["types"] if name != "image"]
        if len(others) != len(names):
            raise InputError(f"{len(others) + 1} inputs are given; the model takes {len(names) + 1} with rows")
        shapes = {value.name: value.shape[1:] for value in self.sessions.open(MATERIALIZE).get_inputs()}
        made = {}
        for name, value in zip(names, others, strict=True):
            array = as_array(value).astype(self.data["types"][name])
            array = array[None] if array.ndim == len(shapes.get(name, array.shape[1:])) else array
            if len(array) != rows or list(array.shape[1:]) != shapes.get(name, list(array.shape[1:])):
                raise InputError(f"{name} has shape {array.shape}; allowed is {(rows, *shapes[name])}")
            made[name] = array
        return made

    def _materialized(self, inputs: dict[str, Array]) -> _Base:
        found = self.sessions.run(MATERIALIZE, inputs)
        outputs: list[Any] = []
        for index, entry in enumerate(self.data["outputs"]["entries"]):
            value = found.get(f"output_{index}")
            outputs.append(value.numpy() if value is not None else _constant(entry))
        return _Base(inputs, {name: value for name, value in found.items() if name.startswith("base_")}, outputs)

    def _run(self, boxes: list[ArrayBox], which: IntArray, images: Array) -> Iterator[tuple[IntArray, list[Array]]]:
        """All queries, some at a time."""
        if len(boxes) == 1:
            for number in np.unique(which):
                rows = np.flatnonzero(which == number)
                yield from self._on_base(self._bases[number], boxes[0], rows, images, which)
            return
        yield from self._two(boxes[0], boxes[1], which, images)

    def _on_base(
        self, base: _Base, box: ArrayBox, rows: IntArray, images: Array, which: IntArray
    ) -> Iterator[tuple[IntArray, list[Array]]]:
        overhead = OVERHEAD_MACS_PER_LAYER * len(self.plan.layers)
        for batch in schedule(self.plan, box.positions[rows], box.sizes, self.batch, overhead):
            some = rows[batch]
            given = {**base.values, "positions": box.positions[some], "patches": box.laid(some, images, which[some])}
            found = self.sessions.run(INCREMENTAL, given)
            yield some, [found[f"result_{i}"].numpy() for i in range(len(found))]

    def _two(
        self, under: ArrayBox, over: ArrayBox, which: IntArray, images: Array
    ) -> Iterator[tuple[IntArray, list[Array]]]:
        """Two boxes: as one where a patch holds both, else the second on a base that shows the first."""
        patch, image = np.array(self.plan.patch_shape), np.array(self.plan.input_shape[1:])
        low = np.minimum(under.positions, over.positions).clip(0)
        high = np.minimum(np.maximum(under.positions + under.sizes, over.positions + over.sizes), image)
        fits = (high - low <= patch).all(axis=1)
        whole = np.flatnonzero(fits)
        if len(whole):
            both = pixels(images, which[whole], low[whole], self.plan.patch_shape)
            for number, row in enumerate(whole):
                one, beneath = np.array([row]), self._beneath(under, int(row), images, which)
                for laid, box in (
                    (under.laid(one, images, which[one]), under),
                    (over.laid(one, beneath, np.zeros(1, np.int64)), over),
                ):
                    both[number] = paste(both[number], laid[0], box.positions[row] - low[row])
            merged = ArrayBox(low[whole], both, None, None)
            for base in np.unique(which[whole]):
                mine = np.flatnonzero(which[whole] == base)
                for rows, outputs in self._on_base(self._bases[base], merged, mine, images, which[whole]):
                    yield whole[rows], outputs
        yield from self._on_patched(under, over, np.flatnonzero(~fits), which, images)

    @staticmethod
    def _beneath(under: ArrayBox, row: int, images: Array, which: IntArray) -> Array:
        """The image [1, C, *S] of a query with its first box."""
        laid = under.laid(np.array([row]), images, which[[row]])[0]
        return paste(images[which[row]], laid, under.positions[row])[None]

    def _on_patched(
        self, under: ArrayBox, over: ArrayBox, rows: IntArray, which: IntArray, images: Array
    ) -> Iterator[tuple[IntArray, list[Array]]]:
        """Each different image with a first box is a base of its own."""
        shown: dict[bytes, list[int]] = {}
        for row in rows:
            one = np.array([row])
            laid = under.laid(one, images, which[one])[0]
            shown.setdefault(which[one].tobytes() + under.positions[row].tobytes() + laid.tobytes(), []).append(
                int(row)
            )
        for members in shown.values():
            mine = np.array(members)
            number = which[mine[0]]
            patched = self._beneath(under, int(mine[0]), images, which)
            base = self._materialized({**self._bases[number].inputs, "image": patched})
            yield from self._on_base(base, over, mine, patched, np.zeros(len(which), np.int64))

    def _none(self) -> list[Array]:
        """The results of no queries."""
        flat = self._bases[0].outputs
        return [
            np.empty((0, *flat[i].shape[1:]), flat[i].dtype)
            for i, entry in enumerate(self.data["outputs"]["entries"])
            if isinstance(entry, int)
        ]


def _joined(rows: Sequence[Any]) -> Any:
    """One output of several base images; what is no array is the same for all."""
    return np.concatenate(rows) if isinstance(rows[0], np.ndarray) and rows[0].ndim else rows[0]


def fitting_batch(plan: Plan) -> int:
    """Queries in one run: up to 32, fewer where dense layers make large tensors for each of them."""
    whole = [plan.base(read.base).shape for read in plan.reads if read.target is None]
    dense = [layer.shape for layer in plan.layers if layer.placement is Placement.DENSE]
    largest = max((prod(shape) for shape in (*whole, *dense)), default=1)
    return max(1, min(BATCH, DENSE_BYTES // (4 * max(largest, 1))))


def _constant(entry: Any) -> Any:
    if isinstance(entry, dict) and "values" in entry:
        return np.array(entry["values"], dtype=entry["dtype"])
    return entry["constant"] if isinstance(entry, dict) else None
