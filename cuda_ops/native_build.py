"""Native CPU kernels: compiled by the system's C++ compiler at first use, kept in the user's cache directory.

The wheel holds their source alone. Without a compiler (or with ``KCOMPILE_NATIVE=0``) everything runs on PyTorch's own
kernels; `status` says which it is. The library is called through a C interface and shares PyTorch's threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

from kcompile.cuda_ops.toom_cook import header

_SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_TIMEOUT = 120.0  # seconds; it takes about three
_log = logging.getLogger("kcompile")


class NativeError(RuntimeError):
    """The kernels can't be compiled or loaded; the message says why."""


def cache_directory() -> Path:
    """Where compiled kernels are kept: ``KCOMPILE_CACHE``, or the system's place for a user's caches."""
    given = os.environ.get("KCOMPILE_CACHE")
    if given:
        return Path(given).absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kcompile"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kcompile"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they can't be had; compiled once and remembered."""
    try:
        return load()
    except (NativeError, OSError, RuntimeError, ValueError) as error:  # no home directory, a full disk, a bad CXX
        _log.info("native kernels are off: %s", error)
        _failures.append(str(error))
        return None


_failures: list[str] = []


def status() -> str:
    """In one line: whether the native kernels are used, and why not."""
    return "native CPU kernels: on" if library() is not None else f"native CPU kernels: off ({_failures[-1]})"


@cache
def parallel_for() -> ctypes.c_void_p:
    """The address of PyTorch's own parallel loop (its stable C interface)."""
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    return ctypes.cast(torch_library.torch_parallel_for, ctypes.c_void_p)


def load(compiler: str | None = None, flags: tuple[str, ...] = _FLAGS) -> ctypes.CDLL:
    """Compile the kernels, if they aren't in the cache, and load them.

    Args:
        compiler: Its command; default: ``CXX``, or the first of c++, g++ and clang++ that there is.
        flags: Its options.

    Raises:
        NativeError: Switched off, no compiler, or it failed.
        OSError: The cache can't be written.
    """
    if os.environ.get("KCOMPILE_NATIVE") == "0":
        raise NativeError("KCOMPILE_NATIVE is 0")
    command = _compiler(compiler)
    try:
        parallel_for()
    except (AttributeError, OSError) as error:
        raise NativeError(f"torch {torch.__version__} has no torch_parallel_for to be called from C") from error
    files = {path.name: path.read_bytes() for path in sorted(_SOURCES.glob("*.*")) if path.suffix in (".h", ".cpp")}
    files["toom_cook.h"] = header().encode()
    key = hashlib.sha256(repr((command, flags, _processor(), sorted(files.items()))).encode()).hexdigest()[:20]
    folder = cache_directory() / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (folder.parent, folder):
        _check_owner(path)
    found = next((path for path in folder.glob(f"{key}-*.so") if _is_whole(path)), None)
    return ctypes.CDLL(str(found or _compile([*command, *flags], files, folder, key)))


def _compiler(given: str | None) -> list[str]:
    wanted = given or os.environ.get("CXX")
    if wanted:
        command = shlex.split(wanted)
        if not command or shutil.which(command[0]) is None:
            raise NativeError(f"the C++ compiler {wanted!r} is not there")
        return command
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise NativeError("no C++ compiler: none of c++, g++ and clang++ is there, and CXX is not set")


def _processor() -> str:
    """What "native" means here: a cache may be shared by unlike machines."""
    info = Path("/proc/cpuinfo")
    kinds = ("model name", "flags", "Features", "CPU part")
    lines = info.read_text().splitlines() if info.exists() else []
    return repr((platform.machine(), platform.processor(), sorted({x for x in lines if x.startswith(kinds)})))


def _compile(command: list[str], files: dict[str, bytes], folder: Path, key: str) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content)
        built = Path(temporary) / "kernels.so"
        sources = [name for name in files if name.endswith(".cpp")]
        arguments = [*command, "-shared", "-fPIC", "-o", str(built), *sources]
        try:
            done = subprocess.run(arguments, cwd=temporary, capture_output=True, timeout=_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NativeError(f"{command[0]} can't be run: {error}") from error
        if done.returncode:
            raise NativeError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()[:2000]}")
        target = folder / f"{key}-{_digest(built)}.so"
        built.chmod(0o700)
        os.replace(built, target)  # at once: other processes may look for it
    return target


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]


def _check_owner(path: Path) -> None:
    """Refuse what others could have written: it would run in this process."""
    found = path.stat()
    if hasattr(os, "getuid") and (found.st_uid not in (os.getuid(), 0) or found.st_mode & stat.S_IWOTH):
        raise NativeError(f"{path} belongs to another user, or others may write to it")


def _is_whole(path: Path) -> bool:
    """False for a file that was cut off: loading it would end the process."""
    _check_owner(path)
    return path.stem.endswith(f"-{_digest(path)}")
