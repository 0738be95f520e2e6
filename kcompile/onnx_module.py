"""`load_onnx`: an export in ONNX Runtime, with `materialize`, `forward_patches` and `occlusion`. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.core.onnx_files import read_manifest
from kcompile.drawn_fills import told
from kcompile.grid import grid, patch_within, steps
from kcompile.heatmap import FloatArray, Heatmap
from kcompile.onnx_fills import patches_of
from kcompile.onnx_scores import Score, scores
from kcompile.progress import Callback, Meter
from kcompile.runtime.onnx_module import OnnxRunner
from kcompile.runtime.onnx_queries import as_array, read_images
from kcompile.runtime.onnx_session import Sessions
from kcompile.targets import Targets, as_targets, several


def load_onnx(
    directory: str | os.PathLike[str], providers: Sequence[Any] | None = None, *, threads: int | None = None
) -> OnnxModule:
    """Open what `export_onnx` wrote, in ONNX Runtime; torch is not needed.

    Args:
        directory: The folder.
        providers: As for `onnxruntime.InferenceSession`; default: CUDA where it runs, else the CPU. The module's
            ``provider`` says which it is.
        threads: Threads of one op; default: ONNX Runtime's own choice.

    Raises:
        SaveError: It is no such folder, files are missing, cut off or of another export.
        InputError: A provider that is not available or does not run here.
    """
    manifest = read_manifest(Path(directory))
    return OnnxModule(manifest, Sessions(manifest, providers, threads))


class OnnxModule(OnnxRunner):
    """An exported model: calls as those of `IncrementalModule`, on arrays."""

    def occlusion(
        self,
        image: Any,
        patch_shape: int | Sequence[int] | None = None,
        *,
        stride: int | Sequence[int] | None = None,
        overlap: float | Sequence[float] | None = None,
        value: Any = 0.0,
        target: Targets = None,
        roi: Sequence[int] | None = None,
        score: Score = "probability",
        output: Any = None,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> Any:
        """Explain predictions: which parts of an image do they rest on? Arguments as `kcompile.occlusion`.

        Args:
            image: [C, *S]; several as a list or [B, C, *S]. Of a model with several inputs a tuple of those with rows,
                of one image, or a list of such.
            patch_shape: Patch size in pixels; default: that of the export.
            stride: Distance between positions, in pixels. Default: 4.
            overlap: Instead of a stride: the share of the patch that neighbouring windows have in common.
            value: A number, one per channel, an array [C, h, w], another image [C, *S], "mean", "patch-mean", "blur",
                "noise", `kcompile.Blur` or `kcompile.Noise`; where torch is installed `kcompile.Pixels` too.
            target: The class to explain; default: the most probable one. Several give a list of maps from one run.
            roi: (top, left, bottom, right) in pixels: patches stay inside.
            score: "probability", "logit", or a function from the output (arrays) to [N] or [N, K].
            output: Which part of a structured output is scored.
            progress: Show a progress bar.
            callback: Called with a `kcompile.Progress` after each batch; returning False stops.

        Returns:
            A `Heatmap`; a list of them for several images, and in their place lists for several targets.

        Raises:
            InputError: Bad image, patch, stride, roi, value, target or score.
        """
        images, single = self._listed(image)
        patch = patch_within(patch_shape, self.plan.patch_shape)
        positions = grid(self.plan.input_shape[1:], patch, steps(stride, overlap, patch), roi)
        asked = _Asked(patch, positions, value, score, output)
        with Meter(len(images) * prod(positions.shape[:-1]), callback, progress) as meter:
            maps = list(self._maps(images, asked, target, meter))
        found = [
            [one.retarget(t) for t in as_targets(target, one.base_scores)] if several(target) else one for one in maps
        ]
        return found[0] if single else found

    def _listed(self, image: Any) -> tuple[list[tuple[Any, ...]], bool]:
        """The inputs with rows of each image, all checked before the first is explained; and whether it is one."""
        alone = len(self.materializer.types) == 1
        listed = isinstance(image, list) or (alone and isinstance(image, tuple))
        if listed and not len(image):
            raise InputError("the image is an empty list")
        found: list[tuple[Any, ...]] = []
        for one in image if listed else [image]:
            first, *others = one if isinstance(one, tuple) else (one,)
            rows = read_images(first, self.plan, self.data["dtype"])
            if len(rows) > 1 and listed:
                raise InputError(f"an image of the list is a batch of {len(rows)}; allowed is one image each")
            given = self.materializer.others(others, len(rows)).values()
            found += [(row, *(value[i] for value in given)) for i, row in enumerate(rows)]
        return found, not listed and len(found) == 1

    def _maps(self, images: list[tuple[Any, ...]], asked: _Asked, target: Targets, meter: Meter) -> Iterator[Heatmap]:
        """The map of each image, the last one partial after Ctrl-C or where the callback stops."""
        for index, inputs in enumerate(images):
            start = time.perf_counter()
            try:
                base = asked.scored(self, self.materialize(*inputs), 1)[0]
            except KeyboardInterrupt:
                if index == 0:
                    raise
                return
            chosen = as_targets(target, base)[0]
            flat = asked.positions.reshape(-1, asked.positions.shape[-1])
            found = np.full((len(flat), len(base)), np.nan, dtype=np.float32)
            done, whole = self._scan(found, flat, inputs[0], asked, index, meter)
            values, name = found.reshape(*asked.positions.shape[:-1], len(base)), asked.name
            size, seconds, shown = self.plan.input_shape[1:], time.perf_counter() - start, told(asked.value)
            own = (values, base, chosen, asked.positions, asked.patch, size, name, seconds)
            yield Heatmap(*own, stopped=not whole, shown=shown)
            if not done:
                return

    def _scan(
        self, into: FloatArray, flat: IntArray, image: Any, asked: _Asked, index: int, meter: Meter
    ) -> tuple[bool, bool]:
        """Fill in the scores; whether to go on (not where the callback or Ctrl-C stops), and whether all are there."""
        left = len(flat)
        try:
            for first, last, patches in patches_of(asked.value, as_array(image), asked.patch)(flat):
                for rows, results, _ in self.stream_patches(patches, flat[first:last]):
                    into[first + rows] = asked.scored(self, self.restore(results), len(rows))
                    left -= len(rows)
                    if not meter.advance(len(rows), index):
                        meter.say("stopped by the callback")
                        return False, not left
        except KeyboardInterrupt:
            meter.say("interrupted")
            return False, not left
        return True, True


@dataclass(frozen=True)
class _Asked:
    """What is asked of each position."""

    patch: tuple[int, ...]
    positions: IntArray
    value: Any
    score: Score
    output: Any

    @property
    def name(self) -> str:
        """What the scores are."""
        return self.score if isinstance(self.score, str) else getattr(self.score, "__name__", "score")

    def scored(self, module: OnnxModule, outputs: Any, rows: int) -> FloatArray:
        """Scores [rows, K] of the model's outputs."""
        return scores(outputs, self.score, self.output, module.data["outputs"], rows)
