"""Loads compiled kernels onto a GPU and launches them on torch's current stream, through the CUDA driver API."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import torch

from kcompile.cuda_ops.nvrtc import Defines, NvrtcError, compiled
from kcompile.cuda_ops.packing import THREADS

P = ParamSpec("P")
T = TypeVar("T")

# What the driver says of a kernel that this device can't have; of all else (memory, a broken context, a capture that
# goes on) nothing follows for the next time.
UNFIT = {
    *("CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_INVALID_PTX", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    *("CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "CUDA_ERROR_JIT_COMPILATION_DISABLED"),
    *("CUDA_ERROR_NOT_FOUND", "CUDA_ERROR_INVALID_SOURCE", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
}


class DriverError(RuntimeError):
    """A call of the driver failed.

    Attributes:
        name: Of the error, as in CUDA's headers.
    """

    def __init__(self, name: str, said: str) -> None:
        """Take the error's name and text."""
        super().__init__(f"CUDA driver: {said}")
        self.name = name


class Launcher(Protocol):
    """What runs kernels on one device."""

    def launch(self, name: str, defines: Defines, grid: tuple[int, int], argument: bytes) -> None:
        """Queue a kernel of `THREADS` threads per block.

        Args:
            name: The kernel, and its file without suffix.
            defines: Macros that it is compiled with.
            grid: Blocks along x and y.
            argument: Its only parameter, a struct.

        Raises:
            NvrtcError: The device can't have this kernel; nothing ran.
            RuntimeError: The driver refuses the launch, or memory is short.
        """


def launcher(device: torch.device) -> Launcher | None:
    """The launcher of a CUDA device; None, with one warning, where kernels can't be compiled or loaded."""
    return _launcher(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _launcher(index: int) -> Launcher | None:
    try:
        return DriverLauncher(index)
    except NvrtcError as error:
        warnings.warn(
            f"kcompile's CUDA kernels can't be used, slower PyTorch ops run instead: {error} (pip install "
            "'kcompile[gpu]' brings what they need)",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def or_reference(reference: Callable[P, T]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates an op by kernels: where one of them can't be built for the device, the reference runs.

    Args:
        reference: Does the same in PyTorch's own ops.
    """

    def decorate(by_kernel: Callable[P, T]) -> Callable[P, T]:
        @wraps(by_kernel)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with suppress(NvrtcError):  # the launcher has warned of it
                return by_kernel(*args, **kwargs)
            return reference(*args, **kwargs)

        return call

    return decorate


class DriverLauncher:
    """Kernels of one device, compiled and loaded at first use."""

    def __init__(self, index: int) -> None:
        """Hold the device's primary context, the one that torch uses.

        Raises:
            NvrtcError: cuda-bindings, NVRTC or the driver is missing, or kernels don't compile for the device.
            RuntimeError: Memory is short.
        """
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise NvrtcError(f"cuda-bindings is needed: {error}") from error
        self.driver: Any = driver
        self.index = index
        major, minor = torch.cuda.get_device_capability(index)
        self.capability = 10 * major + minor
        self.functions: dict[tuple[str, Defines], Any] = {}
        self.failures: dict[tuple[str, Defines], str] = {}  # nothing is compiled in vain twice
        try:
            self._prepare()
        except DriverError as error:
            if error.name == "CUDA_ERROR_OUT_OF_MEMORY":  # there may be enough another time
                raise
            raise NvrtcError(str(error)) from error

    def _prepare(self) -> None:
        driver, index = self.driver, self.index
        self._checked(driver.cuInit(0))
        (device,) = self._checked(driver.cuDeviceGet(index))
        (self.context,) = self._checked(driver.cuDevicePrimaryCtxRetain(device))
        self._load("windows", (("UNIT_BYTES", 16), ("SPATIAL_AXES", 2)))  # here it fails, if it does

    def launch(self, name: str, defines: Defines, grid: tuple[int, int], argument: bytes) -> None:
        """See `Launcher`."""
        if (name, defines) in self.failures:
            raise NvrtcError(self.failures[name, defines])
        try:
            function = self.functions.get((name, defines)) or self._load(name, defines)
            self._queue(function, grid, argument)
        except (NvrtcError, DriverError) as error:
            if isinstance(error, DriverError) and error.name not in UNFIT:
                raise
            self.failures[name, defines] = str(error)
            warnings.warn(
                f"kcompile's CUDA kernel {name!r} can't be used, slower PyTorch ops run in its place: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            raise NvrtcError(str(error)) from error

    def _queue(self, function: Any, grid: tuple[int, int], argument: bytes) -> None:
        buffer = ctypes.create_string_buffer(argument, len(argument))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
        stream = torch.cuda.current_stream(self.index).cuda_stream
        pushed = self._enter()
        try:
            self._checked(
                self.driver.cuLaunchKernel(
                    function, grid[0], grid[1], 1, THREADS, 1, 1, 0, stream, ctypes.addressof(pointers), 0
                )
            )
        finally:
            self._leave(pushed)

    def _load(self, name: str, defines: Defines) -> Any:
        code = compiled(name, defines, self.capability)
        pushed = self._enter()
        try:
            (module,) = self._checked(self.driver.cuModuleLoadData(code))
            (function,) = self._checked(self.driver.cuModuleGetFunction(module, name.encode()))
        finally:
            self._leave(pushed)
        self.functions[name, defines] = function
        return function

    def _enter(self) -> bool:
        """Make the device's context current, where it is not: in a new thread, or where another device is current."""
        (current,) = self._checked(self.driver.cuCtxGetCurrent())
        if int(current) == int(self.context):
            return False
        self._checked(self.driver.cuCtxPushCurrent(self.context))
        return True

    def _leave(self, pushed: bool) -> None:
        if pushed:
            self._checked(self.driver.cuCtxPopCurrent())

    def _checked(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """What follows the status of a call; RuntimeError where it failed."""
        status, *rest = answer
        if int(status) != 0:
            name, said = (getattr(self.driver, f"cuGetError{what}")(status)[1] for what in ("Name", "String"))
            raise DriverError(name.decode(), said.decode())
        return tuple(rest)
