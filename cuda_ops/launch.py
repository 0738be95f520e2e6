"""Loads compiled kernels onto a GPU and launches them on torch's current stream, through the CUDA driver API."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from typing import Any, Protocol

import torch

from kcompile.cuda_ops.nvrtc import Defines, NvrtcError, compiled
from kcompile.cuda_ops.packing import THREADS


class Launcher(Protocol):
    """What runs kernels on one device."""

    def launch(self, name: str, defines: Defines, grid: tuple[int, int], argument: bytes) -> None:
        """Queue a kernel of `THREADS` threads per block.

        Args:
            name: The kernel, and its file without suffix.
            defines: Macros that it is compiled with.
            grid: Blocks along x and y.
            argument: Its only parameter, a struct.
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


class DriverLauncher:
    """Kernels of one device, compiled and loaded at first use."""

    def __init__(self, index: int) -> None:
        """Hold the device's primary context, the one that torch uses.

        Raises:
            NvrtcError: cuda-bindings, NVRTC or the driver is missing, or kernels don't compile for the device.
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
        self._checked(driver.cuInit(0))
        (device,) = self._checked(driver.cuDeviceGet(index))
        (self.context,) = self._checked(driver.cuDevicePrimaryCtxRetain(device))
        self._load("windows", (("UNIT_BYTES", 16), ("SPATIAL_AXES", 2)))  # here it fails, if it does

    def launch(self, name: str, defines: Defines, grid: tuple[int, int], argument: bytes) -> None:
        """See `Launcher`."""
        function = self.functions.get((name, defines)) or self._load(name, defines)
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
        """What follows the status of a call."""
        status, *rest = answer
        if int(status) != 0:
            raise NvrtcError(f"CUDA driver: {self.driver.cuGetErrorString(status)[1].decode()}")
        return tuple(rest)
