"""Sessions of ONNX Runtime for the files of an export. Imports no torch."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kcompile.core.errors import InputError, SaveError
from kcompile.core.onnx_files import MANIFEST, Manifest

Array: TypeAlias = npt.NDArray[Any]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_QUIET = 3  # errors alone: ONNX Runtime writes lines on what it leaves out, which are none of the user's business


class Sessions:
    """The models of an export in ONNX Runtime, opened at first use; values stay on the device between them."""

    def __init__(self, manifest: Manifest, providers: Sequence[Any] | None, threads: int | None) -> None:
        """Check the providers.

        Args:
            manifest: Of the export.
            providers: As for `onnxruntime.InferenceSession`; default: CUDA where it runs, else the CPU.
            threads: Threads of one op; default: ONNX Runtime's own choice.

        Raises:
            InputError: A provider that is not available.
        """
        import onnxruntime

        self._ort, self._manifest, self._threads = onnxruntime, manifest, threads
        self._sessions: dict[str, Any] = {}
        available = onnxruntime.get_available_providers()
        self._wanted = providers
        names = [one if isinstance(one, str) else one[0] for one in providers or ()]
        if unknown := [name for name in names if name not in available]:
            raise InputError(f"provider {unknown[0]!r} is not available; allowed are {', '.join(available)}")
        usual = (CUDA, CPU) if _has_gpu() else (CPU,)
        self._providers = list(providers) if providers else [one for one in usual if one in available]

    @property
    def provider(self) -> str:
        """The name of the provider that runs the models."""
        name: str = self.open(self._manifest.files[0]).get_providers()[0]
        return name

    def open(self, name: str) -> Any:
        """The session of one model."""
        if name not in self._sessions:
            self._sessions[name] = self._opened(name)
        return self._sessions[name]

    def _opened(self, name: str) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = _QUIET
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if CUDA in self._providers and hasattr(self._ort, "preload_dlls"):
            self._ort.preload_dlls()
        path = self._manifest.directory / name
        try:
            session = self._ort.InferenceSession(str(path), options, providers=self._providers)
        except Exception as error:  # ONNX Runtime's errors have no common base
            hint = f" (it lacks ops for {self._manifest.data['dtype']}; float32 runs everywhere)"
            lacking = hint if "NOT_IMPLEMENTED" in str(error) else ""
            raise SaveError(f"ONNX Runtime can't open {path}{lacking}: {str(error)[:300]}") from error
        found, wanted = session.get_providers(), self._providers[0]
        first = wanted if isinstance(wanted, str) else wanted[0]
        if self._wanted and found[0] != first:
            raise InputError(f"provider {first!r} does not run here; ONNX Runtime fell back to {found[0]!r}")
        made = session.get_modelmeta().custom_metadata_map.get("kcompile_id")
        if made != self._manifest.data["id"]:
            raise SaveError(f"{path} and {MANIFEST} beside it are of two exports: copy all files of one")
        return session

    def run_arrays(
        self, name: str, given: Mapping[str, Array], wanted: Collection[str] | None = None
    ) -> dict[str, Array]:
        """Run a model on arrays; its results (or some of them, and only what these need) as arrays."""
        session = self.open(name)
        outputs = [value.name for value in session.get_outputs() if wanted is None or value.name in wanted]
        known = {value.name for value in session.get_inputs()}
        options = self._ort.RunOptions()
        options.only_execute_path_to_fetches = wanted is not None
        read = {key: value for key, value in given.items() if key in known}  # others no op reads
        return dict(zip(outputs, session.run(outputs, read, options), strict=True))

    def run(self, name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run a model on arrays and values on the device; its results as values on the device, by name."""
        session = self.open(name)
        binding = session.io_binding()
        known = {value.name for value in session.get_inputs()}
        held = []  # until the run is over
        device = "cuda" if session.get_providers()[0] == CUDA else "cpu"
        for key, value in given.items():
            if key not in known:
                continue  # what no op of the model reads
            if isinstance(value, np.ndarray):
                held.append(np.ascontiguousarray(value))
                binding.bind_cpu_input(key, held[-1])
            else:
                binding.bind_ortvalue_input(key, value)
        outputs = [value.name for value in session.get_outputs()]
        for key in outputs:
            binding.bind_output(key, device)
        session.run_with_iobinding(binding)
        return MappingProxyType(dict(zip(outputs, binding.get_outputs(), strict=True)))


def _has_gpu() -> bool:
    """True where CUDA's driver is installed: ONNX Runtime complains on stderr if it is asked for CUDA without."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False
