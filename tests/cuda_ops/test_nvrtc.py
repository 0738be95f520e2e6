"""Compiling the CUDA kernels without a GPU: every architecture, the instructions, the cache, what can be missing."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kcompile.cuda_ops import cuda, cuda_reads, kept, launch, nvrtc, reads, reference
from kcompile.runtime.out_of_memory import is_out_of_memory
from tests.cuda_ops.test_ops import arguments, random_geometry

WINDOWS = [(("UNIT_BYTES", unit), ("SPATIAL_AXES", axes)) for unit, axes in ((16, 2), (8, 1), (4, 3), (2, 2), (1, 1))]
ONE = WINDOWS[0]


def missing() -> str | None:
    try:
        nvrtc._nvrtc()
    except nvrtc.NvrtcError as error:
        return str(error)
    return None


needs_nvrtc = pytest.mark.skipif(missing() is not None, reason=missing() or "")


@needs_nvrtc
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("defines", WINDOWS, ids=str)
def test_compiles(defines: nvrtc.Defines, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "folder", lambda: None)
    code = nvrtc.compiled("windows", defines, capability)
    assert code.startswith(b"\x7fELF")
    assert b"windows" in code


@needs_nvrtc
@pytest.mark.parametrize(
    ("unit", "kind"), [(16, "v4.u32"), (16, "v4.b32"), (8, "u64"), (4, "u32"), (2, "u16"), (1, "u8")]
)
def test_values_move_in_accesses_of_the_whole_unit(unit: int, kind: str) -> None:
    """In PTX, every store to the result is one access; nothing spills to local memory."""
    text = nvrtc.compile_source("windows", (("UNIT_BYTES", unit), ("SPATIAL_AXES", 2)), "compute_80").decode()
    stores = {store.replace("b", "u") for store in re.findall(r"st\.global\.(?:cs\.)?([\w.]+)", text)}
    assert stores == {kind.replace("b", "u")}
    assert "ld.local" not in text


@needs_nvrtc
def test_a_device_newer_than_nvrtc_gets_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "folder", lambda: None)
    assert b".visible .entry windows" in nvrtc.compiled("windows", ONE, 999)


@needs_nvrtc
def test_a_device_older_than_nvrtc_is_named() -> None:
    with pytest.raises(nvrtc.NvrtcError, match=r"7\.5 or later, not for 3\.5"):
        nvrtc.compiled("windows", ONE, 35)


@pytest.mark.parametrize(
    ("known", "capability", "target"),
    [
        ((80, 90, 100, 101), 101, "sm_101"),
        ((80, 90, 100, 101), 103, "sm_100"),
        ((80, 86, 87), 89, "sm_86"),
        ((80, 86, 89), 87, "compute_86"),
        ((80, 90, 100, 101), 120, "compute_100"),
        ((87, 110), 120, None),
    ],
)
def test_code_of_a_tegra_is_for_it_alone(
    known: tuple[int, ...], capability: int, target: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: SimpleNamespace(nvrtcGetSupportedArchs=lambda: (0, list(known))))
    if target is not None:
        assert nvrtc.target_of(capability) == target
        return
    with pytest.raises(nvrtc.NvrtcError, match=r"not for 12\.0"):
        nvrtc.target_of(capability)


@needs_nvrtc
def test_the_log_of_what_does_not_compile() -> None:
    with pytest.raises(nvrtc.NvrtcError, match=r"windows\.cu does not compile for sm_90(.|\n)*Bytes<3>"):
        nvrtc.compile_source("windows", (("UNIT_BYTES", 3), ("SPATIAL_AXES", 2)), "sm_90")


@needs_nvrtc
class TestCache:
    @pytest.fixture(autouse=True)
    def _counted(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.compilations: list[str] = []
        self.folder = tmp_path / "new" / "cache"

        def compile_source(name: str, defines: nvrtc.Defines, target: str) -> bytes:
            self.compilations.append(target)
            return f"{name} {defines} {target}".encode()

        monkeypatch.setattr(nvrtc, "compile_source", compile_source)
        monkeypatch.setenv("KCOMPILE_CACHE", str(self.folder))

    def test_second_use_compiles_nothing(self) -> None:
        assert nvrtc.compiled("windows", ONE, 90) == nvrtc.compiled("windows", ONE, 90)
        assert self.compilations == ["sm_90"]
        (kept,) = self.folder.iterdir()
        assert re.fullmatch(r"windows-sm_90-[0-9a-f]{24}\.bin", kept.name)

    def test_architectures_macros_and_sources_have_files_of_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nvrtc.compiled("windows", ONE, 90)
        nvrtc.compiled("windows", ONE, 80)
        nvrtc.compiled("windows", WINDOWS[1], 90)
        changed = {**nvrtc.sources("windows"), "windows.cuh": "// another header"}
        monkeypatch.setattr(nvrtc, "sources", lambda _: changed)
        nvrtc.compiled("windows", ONE, 90)
        assert len(self.compilations) == len(list(self.folder.iterdir())) == 4

    @pytest.mark.parametrize("damage", [b"", b"short", b"x" * 200])
    def test_a_damaged_file_is_compiled_again(self, damage: bytes) -> None:
        code = nvrtc.compiled("windows", ONE, 90)
        (kept,) = self.folder.iterdir()
        kept.write_bytes(damage)
        assert nvrtc.compiled("windows", ONE, 90) == code
        assert nvrtc.compiled("windows", ONE, 90) == code
        assert len(self.compilations) == 2

    def test_a_folder_that_cannot_be_made_is_no_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("KCOMPILE_CACHE", str(tmp_path / "file" / "cache"))
        assert nvrtc.compiled("windows", ONE, 90)

    def test_a_failing_write_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(os, "replace", full)
        assert nvrtc.compiled("windows", ONE, 90)
        assert not list(self.folder.iterdir())


def test_without_a_home_directory_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(kept, "cache_directory", homeless)
    monkeypatch.setattr(nvrtc, "compile_source", lambda *_: b"code")
    assert kept.folder() is None
    assert nvrtc.compiled("windows", ONE, 90) == b"code"


class FakeDriver:
    """The calls of `DriverLauncher`, noted; another context than the device's is current."""

    def __init__(self, current: int) -> None:
        self.stack, self.calls = [current], []
        self.failing: dict[str, str] = {}  # the errors' names, by the calls that fail

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.failing:
                return (1,)
            match name:
                case "cuGetErrorName":
                    return 0, next(iter(self.failing.values())).encode()
                case "cuGetErrorString":
                    said = next(iter(self.failing.values()))
                    return 0, f"text of {said}{', out of memory' * ('MEMORY' in said)}".encode()
                case "cuCtxPushCurrent":
                    self.stack.append(given[0])
                case "cuCtxPopCurrent":
                    return 0, self.stack.pop()
                case "cuCtxGetCurrent":
                    return 0, self.stack[-1]
                case "cuDevicePrimaryCtxRetain":
                    return 0, 77
                case "cuLaunchKernel":
                    assert self.stack[-1] == 77, "launched in another context"
            return (0, 5)

        return call


def launcher_on(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> launch.DriverLauncher:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    monkeypatch.setattr("cuda.bindings.driver", driver, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=3))
    monkeypatch.setattr(kept, "folder", lambda: None)
    return launch.DriverLauncher(0)


@needs_nvrtc
@pytest.mark.parametrize("current", [77, 0])
def test_the_devices_context_is_current_and_then_the_old_one(current: int, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(current)
    run = launcher_on(driver, monkeypatch)
    run.launch("windows", ONE, (1, 1), b"x" * 8)
    assert driver.stack == [current]
    assert driver.calls.count("cuModuleLoadData") == 1
    assert driver.calls.count("cuLaunchKernel") == 1


def test_without_cuda_bindings_the_reference_runs_after_one_warning(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    launch._launcher.cache_clear()
    monkeypatch.setattr(cuda, "launcher", lambda _: launch.launcher(torch.device("cuda", 0)))
    given = arguments(random_geometry(2))["gather_superimpose"]
    with pytest.warns(RuntimeWarning, match=r"kcompile\[gpu\]"):
        assert torch.equal(cuda.gather_superimpose(*given), reference.gather_superimpose(*given))
    assert torch.equal(cuda.gather_superimpose(*given), reference.gather_superimpose(*given))
    launch._launcher.cache_clear()


@needs_nvrtc
def test_a_kernel_that_cannot_be_built_is_replaced_by_the_reference(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Others go on; it is compiled in vain once, with one warning."""
    run, compiled = launcher_on(FakeDriver(77), monkeypatch), []

    def refused(name: str, defines: nvrtc.Defines, target: str) -> bytes:
        compiled.append(name)
        raise nvrtc.NvrtcError("no room for registers")

    monkeypatch.setattr(nvrtc, "compile_source", refused)
    monkeypatch.setattr(cuda, "launcher", lambda _: run)
    g = random_geometry(2)
    given = (g.base, g.patch, None, -1.0, 1.0, g.origins, g.offsets, g.extent)
    with pytest.warns(RuntimeWarning, match="kernel 'activated' can't be used.*no room for registers"):
        assert torch.equal(cuda_reads.read_activated(*given), reads.read_activated(*given))
    assert torch.equal(cuda_reads.read_activated(*given), reads.read_activated(*given))
    assert compiled == ["activated"]
    run.launch("windows", ONE, (1, 1), b"x" * 8)


@needs_nvrtc
@pytest.mark.parametrize(
    ("call", "said", "error", "loads"),
    [
        ("cuModuleLoadData", "CUDA_ERROR_INVALID_IMAGE", nvrtc.NvrtcError, 1),
        ("cuModuleGetFunction", "CUDA_ERROR_NOT_FOUND", nvrtc.NvrtcError, 1),
        ("cuLaunchKernel", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", nvrtc.NvrtcError, 1),
        ("cuModuleLoadData", "CUDA_ERROR_OUT_OF_MEMORY", launch.DriverError, 2),
        ("cuModuleLoadData", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", launch.DriverError, 2),
        ("cuModuleLoadData", "CUDA_ERROR_ILLEGAL_ADDRESS", launch.DriverError, 2),
        ("cuLaunchKernel", "CUDA_ERROR_ILLEGAL_ADDRESS", launch.DriverError, 1),
    ],
)
@pytest.mark.filterwarnings("ignore:kcompile's CUDA kernel")
def test_errors_of_the_driver(
    call: str, said: str, error: type[Exception], loads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that a device can't have is left alone from then on; what else goes wrong is raised, and tried again."""
    driver = FakeDriver(77)
    run = launcher_on(driver, monkeypatch)
    driver.calls.clear()
    driver.failing[call] = said
    for _ in range(2):
        with pytest.raises(error, match=f"text of {said}"):
            run.launch("windows", WINDOWS[1], (1, 1), b"x" * 8)
    assert driver.calls.count("cuModuleLoadData") == loads
    driver.failing.clear()
    if error is launch.DriverError:
        run.launch("windows", WINDOWS[1], (1, 1), b"x" * 8)
    run.launch("windows", WINDOWS[2], (1, 1), b"x" * 8)


@needs_nvrtc
def test_a_launcher_that_lacked_memory_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(77)
    driver.failing["cuModuleLoadData"] = "CUDA_ERROR_OUT_OF_MEMORY"
    launch._launcher.cache_clear()
    with pytest.raises(launch.DriverError, match="OUT_OF_MEMORY") as raised:
        launcher_on(driver, monkeypatch)
    assert is_out_of_memory(raised.value)
    with pytest.raises(launch.DriverError):
        launch.launcher(torch.device("cuda", 0))
    driver.failing.clear()
    assert launch.launcher(torch.device("cuda", 0)) is not None
    driver.failing["cuModuleLoadData"] = "CUDA_ERROR_INVALID_IMAGE"
    launch._launcher.cache_clear()
    with pytest.warns(RuntimeWarning, match="CUDA kernels can't be used"):
        assert launch.launcher(torch.device("cuda", 0)) is None
    launch._launcher.cache_clear()
