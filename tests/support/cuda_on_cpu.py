"""The CUDA C kernels on CPU tensors: the same source, compiled by g++ behind a shim of thread indices."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kcompile.cuda_ops import cuda, nvrtc
from kcompile.cuda_ops.nvrtc import Defines
from kcompile.cuda_ops.packing import THREADS

SHIM = Path(__file__).with_name("cuda_shim.h")
GXX = shutil.which("g++")
needs_gxx = pytest.mark.skipif(GXX is None, reason="no g++ to compile the CUDA C source for the CPU")

WRAPPER = """
#include "{shim}"
#include "{name}.cu"
extern "C" void run_{name}(unsigned x, unsigned y, unsigned threads, const void *bytes, long size) {{
    run({name}, x, y, threads, bytes, size);
}}
"""


@dataclass
class CpuLauncher:
    """Stands in for `DriverLauncher`; ``launched`` lists the kernels that ran, with their macros."""

    folder: Path
    launched: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    built: dict[tuple[str, Defines], Any] = field(default_factory=dict)

    def launch(self, name: str, defines: Defines, grid: tuple[int, int], argument: bytes) -> None:
        if (name, defines) not in self.built:
            self.built[name, defines] = self._build(name, defines)
        assert all(1 <= blocks <= limit for blocks, limit in zip(grid, (2**31 - 1, 65535), strict=True))
        self.built[name, defines](*grid, THREADS, argument, len(argument))
        self.launched.append((name, dict(defines)))

    def _build(self, name: str, defines: Defines) -> Any:
        assert GXX is not None
        stem = "-".join([name, *(str(value) for _, value in defines)])
        source, library = self.folder / f"{stem}.cpp", self.folder / f"{stem}.so"
        source.write_text(WRAPPER.format(shim=SHIM, name=name))
        macros = [f"-D{macro}={value}" for macro, value in defines]
        flags = [
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-fPIC",
            "-shared",
            "-Wall",
            "-Werror",
            "-Wno-unknown-pragmas",
        ]
        command = [GXX, *flags, *macros, f"-I{nvrtc.FOLDER}", str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        function = getattr(ctypes.CDLL(str(library)), f"run_{name}")
        function.argtypes = [ctypes.c_uint] * 3 + [ctypes.c_char_p, ctypes.c_long]
        function.restype = None
        return function


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> CpuLauncher:
    """One launcher for all tests: each kernel is compiled once."""
    return CpuLauncher(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def on_cpu(built: CpuLauncher, monkeypatch: pytest.MonkeyPatch) -> CpuLauncher:
    """Inside the test, `cuda` and `cuda_reads` run their kernels on CPU tensors."""
    built.launched.clear()
    monkeypatch.setattr(cuda, "launcher", lambda _: built)  # the other module goes through it
    return built
