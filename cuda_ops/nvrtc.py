"""CUDA C to device code at first use, by NVRTC: no nvcc and no C compiler is needed, compiling needs no GPU.

What was compiled is kept in the user's cache directory (`kept`), one file per source,
architecture and compiler.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from kcompile.cuda_ops import kept

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17", "--fmad=false")  # products and sums round one by one, as on the CPU
TEGRA = frozenset({32, 53, 62, 72, 87, 88, 101, 110})  # their machine code is for them alone, theirs no other's
Defines: TypeAlias = tuple[tuple[str, str | int], ...]


class NvrtcError(RuntimeError):
    """NVRTC is missing or refuses a source; callers fall back to the reference ops."""


def compiled(name: str, defines: Defines, capability: int) -> bytes:
    """Device code of one ``.cu`` file of this folder, out of the cache if it is there.

    Args:
        name: File name without suffix.
        defines: Macros and their values; each combination is a kernel of its own, compiled when it is needed.
        capability: Compute capability, major * 10 + minor.

    Raises:
        NvrtcError: cuda-bindings or NVRTC is missing, or the source does not compile.
    """
    nvrtc = _nvrtc()
    target, options = target_of(capability), " ".join([*OPTIONS, *_macros(defines)])
    version = ".".join(map(str, _checked(nvrtc, nvrtc.nvrtcVersion())))
    parts = [version, target, options, *(f"{file}\n{text}" for file, text in sources(name).items())]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    place = kept.folder()
    file = None if place is None else place / f"{name}-{target}-{key}.bin"
    code = None if file is None else kept.read(file)
    if code is None:
        code = compile_source(name, defines, target)
        if file is not None:
            kept.write(file, code)
    return code


def compile_source(name: str, defines: Defines, target: str) -> bytes:
    """Compile one ``.cu`` file of this folder.

    Args:
        name: File name without suffix.
        defines: Macros and their values.
        target: "sm_90" for machine code of compute capability 9.0, "compute_90" for PTX.

    Raises:
        NvrtcError: With the compiler's log.
    """
    nvrtc = _nvrtc()
    text, *headers = sources(name).items()
    contents, names = [body.encode() for _, body in headers], [file.encode() for file, _ in headers]
    (program,) = _checked(
        nvrtc, nvrtc.nvrtcCreateProgram(text[1].encode(), text[0].encode(), len(headers), contents, names)
    )
    try:
        options = [option.encode() for option in (*OPTIONS, *_macros(defines), f"--gpu-architecture={target}")]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            log = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))[0])
            nvrtc.nvrtcGetProgramLog(program, log)
            raise NvrtcError(f"{name}.cu does not compile for {target}:\n{bytes(log).decode(errors='replace')}")
        kind = "CUBIN" if target.startswith("sm_") else "PTX"
        code = bytearray(_checked(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}Size")(program))[0])
        _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}")(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _macros(defines: Defines) -> list[str]:
    return [f"-D{macro}={value}" for macro, value in defines]


@cache
def sources(name: str) -> dict[str, str]:
    """Texts of a ``.cu`` file and of all headers, by file name."""
    files = [FOLDER / f"{name}.cu", *sorted(FOLDER.glob("*.cuh"))]
    return {file.name: file.read_text() for file in files}


@cache
def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc  # at first use: importing kcompile loads no CUDA library

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:  # absent bindings; absent library
        raise NvrtcError(f"cuda-bindings with NVRTC is needed: {error}") from error
    return nvrtc


def target_of(capability: int) -> str:
    """What to compile for: machine code for the device, or PTX where this NVRTC is older than the device.

    Code for an older device of the same generation runs too, if neither of both is a Tegra (CUDA's programming guide,
    "Binary Compatibility").

    Raises:
        NvrtcError: NVRTC is missing, or doesn't compile for a device so old.
    """
    nvrtc = _nvrtc()
    (known,) = _checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())
    if capability in known:
        return f"sm_{capability}"
    usable = [arch for arch in known if arch < capability and arch not in TEGRA]
    if not usable:
        least = min(set(known) - TEGRA, default=min(known))
        raise NvrtcError(f"NVRTC compiles for compute capability {least / 10} or later, not for {capability / 10}")
    best = max(usable)
    alike = best // 10 == capability // 10 and capability not in TEGRA
    return f"sm_{best}" if alike else f"compute_{best}"


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What follows the status of a call."""
    status, *rest = answer
    if int(status) != 0:
        raise NvrtcError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return tuple(rest)
