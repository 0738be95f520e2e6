"""`load_onnx`: an export in ONNX Runtime, with `materialize`, `forward_patches` and `occlusion`. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from kcompile.core.errors import InputError
from kcompile.core.onnx_files import read_manifest
from kcompile.grid import grid, patch_within, steps
from kcompile.heatmap import FloatArray, Heatmap
from kcompile.onnx_fills import patches_of
from kcompile.progress import Callback, Meter
from kcompile.runtime.onnx_module import OnnxRunner
from kcompile.runtime.onnx_session import Sessions

Score: TypeAlias = str | Callable[[Any], Any]


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
        target: int | None = None,
        roi: Sequence[int] | None = None,
        score: Score = "probability",
        output: Any = None,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> Heatmap:
        """Explain a prediction: which parts of an image does it rest on? Arguments as `kcompile.occlusion`.

        Args:
            image: [C, *S]; of a model with several inputs a tuple of those with rows.
            patch_shape: Patch size in pixels; default: that of the export.
            stride: Distance between positions, in pixels. Default: 4.
            overlap: Instead of a stride: the share of the patch that neighbouring windows have in common.
            value: A number, one per channel, an array [C, h, w], another image [C, *S], "mean", "patch-mean" or "blur".
            target: The class to explain; default: the most probable one.
            roi: (top, left, bottom, right) in pixels: patches stay inside.
            score: "probability", "logit", or a function from the output (arrays) to [N] or [N, K].
            output: Which part of a structured output is scored.
            progress: Show a progress bar.
            callback: Called with a `kcompile.Progress` after each batch; returning False stops.

        Raises:
            InputError: Bad image, patch, stride, roi, value, target or score.
        """
        start = time.perf_counter()
        inputs = image if isinstance(image, tuple) else (image,)
        patch = patch_within(patch_shape, self.plan.patch_shape)
        positions = grid(self.plan.input_shape[1:], patch, steps(stride, overlap, patch), roi)
        flat = positions.reshape(-1, positions.shape[-1])
        base = self._scores(self.materialize(*inputs), score, output)[0]
        chosen = int(np.argmax(base)) if target is None else int(target)
        if not 0 <= chosen < len(base):
            raise InputError(f"target is {target}; the model has classes 0 … {len(base) - 1}")
        found = np.full((len(flat), len(base)), np.nan, dtype=np.float32)
        source = patches_of(value, self._bases[0].inputs["image"][0], patch)
        with Meter(len(flat), callback, progress) as meter:
            self._scan(found, flat, source, score, output, meter)
        name = score if isinstance(score, str) else getattr(score, "__name__", "score")
        scores = found.reshape(*positions.shape[:-1], len(base))
        seconds = time.perf_counter() - start
        return Heatmap(scores, base, chosen, positions, patch, self.plan.input_shape[1:], name, seconds)

    def _scan(self, into: FloatArray, flat: Any, source: Any, score: Score, output: Any, meter: Meter) -> None:
        """Fill in the scores, until all are there, the callback stops or Ctrl-C."""
        try:
            for first, last, patches in source(flat):
                for rows, results, _ in self.stream_patches(patches, flat[first:last]):
                    into[first + rows] = self._scores(self.restore(results), score, output)
                    if not meter.advance(len(rows), 0):
                        return
        except KeyboardInterrupt:
            meter.say("interrupted")

    def _scores(self, outputs: Any, score: Score, key: Any) -> FloatArray:
        """Scores [N, K], as `kcompile.scoring` makes them."""
        part = _select(outputs, key)
        if callable(score):
            result = np.asarray(score(part))
            return result[:, None] if result.ndim == 1 else result
        if score not in ("probability", "logit"):
            raise InputError(f'score is {score!r}; allowed are "probability", "logit" or a function')
        if not isinstance(part, np.ndarray) or part.ndim not in (1, 2):
            raise InputError(f"the output has shape {np.shape(part)}, not [N, classes]: pass a function as score=")
        values = part[:, None] if part.ndim == 1 else part
        activation = self._activation(key)
        return _probability(values, activation) if score == "probability" else _logit(values, activation)

    def _activation(self, key: Any) -> str | None:
        """The model's own last op, of the part that is scored."""
        written = self.data["outputs"]
        if key is None:
            pairs = zip(written["activations"], written["entries"], strict=True)
            return next((activation for activation, entry in pairs if isinstance(entry, int)), None)
        from kcompile.runtime.onnx_structure import restore

        numbered = restore(written["structure"], list(range(len(written["entries"]))))
        index = _part(numbered, key)
        return written["activations"][index] if isinstance(index, int) else None


def _part(outputs: Any, key: Any) -> Any:
    return getattr(outputs, key) if isinstance(key, str) and not isinstance(outputs, dict) else outputs[key]


def _select(outputs: Any, key: Any) -> Any:
    if key is not None:
        try:
            return _part(outputs, key)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise InputError(f"output={key!r} is not in the model's output") from error
    if isinstance(outputs, np.ndarray):
        return outputs
    parts = list(outputs.values()) if isinstance(outputs, dict) else list(outputs)
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) != 1:
        raise InputError(f"the model returns {len(parts)} outputs: choose one with output=")
    return arrays[0]


def _probability(values: Any, activation: str | None) -> FloatArray:
    if activation in ("softmax", "sigmoid"):
        return np.asarray(values)
    if activation == "log_softmax":
        return np.asarray(np.exp(values))
    if values.shape[1] == 1:
        return np.asarray(1 / (1 + np.exp(-values)))
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _logit(values: Any, activation: str | None) -> FloatArray:
    info = np.finfo(values.dtype)
    if activation == "softmax":
        return np.asarray(np.log(np.maximum(values, info.tiny)))
    if activation == "sigmoid":
        inside = np.clip(values, info.eps, 1 - info.eps)
        return np.asarray(np.log(inside / (1 - inside)))
    return np.asarray(values)
