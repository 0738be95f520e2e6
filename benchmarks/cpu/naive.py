"""The naive sides: ways to infer batches of patched images in full, each as fast as its own options make it.

All run float32 on the same number of threads, except OpenVINO's default, which lowers the precision where the CPU can
(``openvino``; ``openvino-f32`` is told not to). Every batch has the same size, which helps all of them.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.maps import IntArray, occluded

Run = Callable[[Tensor], Tensor]
_EXTRA = "pip install kcompile[bench]"


class MissingError(Exception):
    """A baseline can't run here; the message says why."""


@dataclass(frozen=True)
class Naive:
    """A way to infer patched images in full.

    Attributes:
        name: One of `BUILDERS`.
        run: Takes images [batch, C, H, W] and gives the model's output, as a tensor of its own.
        batch: Images per call.
        layout: Memory format that the images should have.
        version: Of the library.
    """

    name: str
    run: Run
    batch: int
    layout: torch.memory_format
    version: str

    @torch.no_grad()
    def time(self, image: Tensor, positions: IntArray, patch: int) -> tuple[float, Tensor]:
        """Seconds to make and infer the patched copies of an image [C, H, W], and the outputs.

        The last batch is filled up with the first positions; seconds are scaled to the positions that were asked for.
        """
        count = -(-len(positions) // self.batch) * self.batch
        filled = np.resize(positions, (count, positions.shape[1]))
        start = time.perf_counter()
        parts = (filled[first : first + self.batch] for first in range(0, count, self.batch))
        outputs = [self.run(occluded(image, part, patch, layout=self.layout)) for part in parts]
        seconds = time.perf_counter() - start
        return seconds * len(positions) / count, torch.cat(outputs)[: len(positions)]


@dataclass
class Models:
    """One network as the baselines want it, made when first asked for.

    Attributes:
        plain: The model, in eval mode.
        size: Of its square images, in pixels.
        batch: Images per call.
        threads: That a call may use.
    """

    plain: nn.Module
    size: int
    batch: int
    threads: int
    _folder: list[str] = field(default_factory=list)

    @cached_property
    def channels_last(self) -> nn.Module:
        """The model itself, with its weights in channels-last from now on."""
        return self.plain.to(memory_format=torch.channels_last)

    @cached_property
    def onnx(self) -> Path:
        """The model as an ONNX file, for batches of this size."""
        for module in ("onnx", "onnxscript"):
            _needs(module)
        self._folder.append(tempfile.mkdtemp(prefix="kcompile-bench-"))
        path = Path(self._folder[0]) / "model.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(self.plain, (self.images(),), path, dynamo=True, verbose=False)
        return path

    def images(self) -> Tensor:
        """A batch of noise."""
        return torch.randn(self.batch, 3, self.size, self.size)

    def close(self) -> None:
        """Remove the files."""
        for folder in self._folder:
            shutil.rmtree(folder, ignore_errors=True)


def build(name: str, models: Models) -> Naive:
    """The baseline of that name, warmed up.

    Raises:
        MissingError: It can't run here.
    """
    layout = torch.contiguous_format if name in _NCHW else torch.channels_last
    run, version = BUILDERS[name](models)
    images = models.images().contiguous(memory_format=layout)
    with torch.no_grad():
        for _ in range(2):
            run(images)
    return Naive(name, run, models.batch, layout, version)


def _needs(module: str) -> Any:
    if importlib.util.find_spec(module) is None:
        raise MissingError(f"{module} is not installed ({_EXTRA})")
    return importlib.import_module(module)


def _eager(models: Models) -> tuple[Run, str]:
    model = models.channels_last

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            made: Tensor = model(images)
            return made

    return run, str(torch.__version__)


def _compiled(models: Models) -> tuple[Run, str]:
    from torch._inductor import config, exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise MissingError("torch.compile needs a C++ compiler, and finds none") from error
    torch._dynamo.reset()
    compiled = torch.compile(models.channels_last)

    def run(images: Tensor) -> Tensor:
        with config.patch(freezing=True):  # which works where no gradients are asked for
            made: Tensor = compiled(images)
            return made

    return run, str(torch.__version__)


def _onnxruntime(models: Models) -> tuple[Run, str]:
    ort = _needs("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = models.threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # threads that spin would slow what is next
    session = ort.InferenceSession(models.onnx, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])

    return run, ort.__version__


def _openvino(models: Models, **precision: str) -> tuple[Run, str]:
    openvino = _needs("openvino")
    options = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": models.threads, **precision,
    }  # fmt: skip
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(models.onnx), "CPU", options)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled([images.numpy()], share_inputs=True)[0].copy())

    return run, openvino.__version__


BUILDERS: dict[str, Callable[[Models], tuple[Run, str]]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino-f32": lambda models: _openvino(models, INFERENCE_PRECISION_HINT="f32"),
    "openvino": _openvino,
}
_NCHW = {"onnxruntime", "openvino-f32", "openvino"}
