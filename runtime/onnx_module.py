"""An exported model with the calls of `IncrementalModule`, on ONNX Runtime and NumPy. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from kcompile.core.checks import per_axis
from kcompile.core.errors import InputError, NotMaterializedError
from kcompile.core.interval import IntArray, Interval
from kcompile.core.onnx_files import HEATMAP, Manifest
from kcompile.core.plan import Plan
from kcompile.core.region import Region
from kcompile.runtime.onnx_bases import Base, Materializer, constant, joined
from kcompile.runtime.onnx_queries import ArrayBox, as_array, read_base_index, read_boxes, read_images
from kcompile.runtime.onnx_regions import ArrayRegions
from kcompile.runtime.onnx_runs import Policy, Results, Runs
from kcompile.runtime.onnx_session import Array, Sessions
from kcompile.runtime.onnx_structure import restore
from kcompile.runtime.onnx_two_boxes import run_two


class OnnxRunner:
    """Runs the two models of an export.

    Attributes:
        plan: What was decided at compile time.
        base_output: The model's output for the materialised images, or None.
        policy: "auto" runs a call that would be slower incrementally in full (one image after the other), "incremental"
            and "full" force either way.
    """

    policy: Policy = "auto"

    def __init__(self, manifest: Manifest, sessions: Sessions) -> None:
        """Open the models."""
        self.plan: Plan = manifest.plan
        self.sessions, self.data = sessions, manifest.data
        self.base_output: Any = None
        self.materializer = Materializer(manifest, sessions)
        self.runs = Runs(manifest.plan, sessions, self.materializer)
        self._bases: list[Base] = []

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
        rows = {"image": images, **self.materializer.others(others, len(images))}
        self._bases = [
            self.materializer.base({name: value[i : i + 1] for name, value in rows.items()}) for i in range(len(images))
        ]
        leaves = [joined(column) for column in zip(*(base.outputs for base in self._bases), strict=True)]
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
                leaves.append(joined([base.outputs[index] for base in self._bases]))
            else:
                leaves.append(results[entry] if isinstance(entry, int) else constant(entry))
        return restore(self.data["outputs"]["structure"], leaves)

    def run_heatmap(self, image: Any, patch: Any, *, positions: Any = None, stride: Any = None) -> dict[str, Array]:
        """Run ``heatmap.onnx``: the scores of patched copies of one image.

        Args:
            image: [C, *S]; of a model with several inputs a tuple of those with rows.
            patch: [C, *sizes].
            positions: [N, axes], or None.
            stride: Pixels (from 1 on), one number or one per axis: adds a grid of positions. None adds none.

        Returns:
            "scores" [N, K], "base_score" [K], "places" [N, axes].

        Raises:
            InputError: The export has no such model, or wrong shapes.
        """
        if HEATMAP not in self.data["files"]:
            raise InputError(f"this export has no {HEATMAP}: {self.data['no_heatmap']}")
        inputs = image if isinstance(image, tuple) else (image,)
        axes, content = len(self.plan.patch_shape), as_array(patch)
        given: dict[str, Array] = {"image": read_images(inputs[0], self.plan, self.data["dtype"])}
        if len(given["image"]) > 1:
            raise InputError(f"the image is a batch of {len(given['image'])}; {HEATMAP} takes one image")
        if content.ndim > 1 + axes:
            raise InputError(f"the patch has shape {content.shape}; {HEATMAP} takes one patch for all positions")
        given |= self.materializer.others(inputs[1:], 1)
        places = np.zeros((0, axes), np.int64) if positions is None else positions
        box, *more = read_boxes(self.plan, self.data["dtype"], content, places, None, None)
        if more:
            raise InputError(f"positions are of two boxes per query; {HEATMAP} takes one, [N, {axes}]")
        given |= {"patch": box.patches[0], "positions": box.positions}
        steps = (0,) * axes if stride is None else per_axis(stride, axes, "stride")
        given["stride"] = np.array(steps, np.int64)
        return self.sessions.run_arrays(HEATMAP, given)

    def _run(self, boxes: list[ArrayBox], which: IntArray, images: Array) -> Results:
        """All queries, some at a time."""
        if self.policy not in ("auto", "incremental", "full"):
            raise InputError(f'policy is {self.policy!r}; allowed are "auto", "incremental" and "full"')
        if len(boxes) == 2:
            yield from run_two(self.runs, self._bases, boxes, which, images, self.policy)
            return
        for number in np.unique(which):
            rows = np.flatnonzero(which == number)
            yield from self.runs.run(self._bases[number], boxes[0], rows, images, which, self.policy)

    def _none(self) -> list[Array]:
        """The results of no queries."""
        flat = self._bases[0].outputs
        return [
            np.empty((0, *flat[i].shape[1:]), flat[i].dtype)
            for i, entry in enumerate(self.data["outputs"]["entries"])
            if isinstance(entry, int)
        ]
