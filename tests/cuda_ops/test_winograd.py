"""Minimal filtering: its matrices exactly, the ops against convolutions in double precision, and the native build."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kcompile.cuda_ops import native_build, winograd
from kcompile.cuda_ops.toom_cook import Axis, matrices

ops = torch.ops.kcompile
INF = float("inf")
TOLERANCE = 3e-6  # of the largest value: a direct convolution's own error is about 1e-6
tiles = pytest.mark.parametrize("tile", range(len(winograd.TILES)), ids=lambda tile: str(winograd.TILES[tile]))
native = pytest.mark.skipif(not winograd.supported(), reason=native_build.status())


def channels_last(*shape: int) -> Tensor:
    count, channels, *sizes = shape
    return torch.randn(count, *sizes, channels).movedim(-1, 1)


def weights_of(tile: int, filters: int, channels: int) -> Tensor:
    rows, columns = (axis.taps for axis in winograd.TILES[tile])
    return torch.randn(filters, channels, rows, columns) / (channels * rows * columns) ** 0.5


def stride_of(tile: int) -> tuple[int, ...]:
    return tuple(axis.stride for axis in winograd.TILES[tile])


@pytest.fixture(autouse=True)
def seed() -> int:
    value = torch.seed() % 2**32
    torch.manual_seed(value)
    print(f"seed {value}")
    return value


axes = pytest.mark.parametrize("axis", sorted({axis for tile in winograd.TILES for axis in tile}), ids=str)


@axes
def test_the_matrices_make_the_correlation_exactly(axis: Axis) -> None:
    inputs, taps, outputs = matrices(axis)
    for output in range(axis.outputs):
        for tap in range(axis.taps):
            for cell in range(axis.points):
                made = sum(outputs[output][p] * taps[p][tap] * inputs[p][cell] for p in range(axis.points))
                assert made == Fraction(int(cell == output * axis.stride + tap))


@axes
def test_what_transforms_values_is_exact_in_float32(axis: Axis) -> None:
    inputs, _, outputs = matrices(axis)
    values = [x for matrix in (inputs, outputs) for row in matrix for x in row]
    assert all(Fraction(float(torch.tensor(float(x)))) == x for x in values)


@tiles
@pytest.mark.parametrize("run", [winograd.reference, pytest.param(ops.winograd, marks=native)])
@pytest.mark.parametrize(
    ("count", "channels", "filters", "height", "width", "padded"),
    [
        (3, 16, 16, 9, 11, 0),
        (2, 37, 45, 13, 8, 1),
        (1, 64, 17, 21, 20, 1),
        (40, 24, 80, 7, 7, 0),
        (0, 16, 16, 9, 9, 0),
    ],
)
def test_equals_a_convolution(tile, run, count, channels, filters, height, width, padded):
    weight = weights_of(tile, filters, channels)
    padding = [padded * (side > 1) for side in weight.shape[2:]]
    window, bias = channels_last(count, channels, height, width), torch.randn(filters)
    want = F.conv2d(window.double(), weight.double(), bias.double(), stride_of(tile), padding)
    other = torch.randn(want.shape)  # not channels-last
    scale = float(want.abs().max()) if count else 1.0
    packed = winograd.pack(weight, tile)
    got = run(window, packed, bias, None, padding, filters, tile, -INF, INF)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE * scale)
    got = run(window, packed, None, other, padding, filters, tile, -0.25, 0.5)
    want = (want - bias.double()[:, None, None] + other).clamp(-0.25, 0.5)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("channels", [1000, 1024, 2048])
def test_single_cells_of_many_channels(channels):
    """Multiples of 1,024 are copied first, others are read in place; parts of blocks, too."""
    tile = winograd.TILES.index((Axis(1, 1), Axis(1, 1)))
    window, weight, other = channels_last(3, channels, 9, 8), weights_of(tile, 40, channels), channels_last(3, 40, 9, 8)
    got = ops.winograd(window, winograd.pack(weight, tile), None, other, [0, 0], 40, tile, -INF, INF)
    want = F.conv2d(window.double(), weight.double()) + other
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE * float(want.abs().max()))


@tiles
def test_on_base_and_patch_equals_the_same_on_windows(tile):
    base, patch = torch.randn(3, 17, 19, 20), channels_last(30, 20, 5, 6)
    origins = torch.stack([torch.randint(high, (30,)) for high in (3, 17 - 9 + 1, 19 - 11 + 1)], 1)
    offsets = torch.stack([torch.randint(-7, 12, (30,)) for _ in range(2)], 1)  # some patches miss their windows
    packed = winograd.pack(weights_of(tile, 24, 20), tile)
    arguments = (packed, torch.randn(24), None, [0, 0], 24, tile, 0.0, INF)
    got = ops.gather_winograd(base, patch, origins, offsets, [9, 11], *arguments)
    window = ops.gather_superimpose(base, patch, origins, offsets, [9, 11])
    want = winograd.reference(window, *arguments)
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE * float(want.abs().max()))


@native
def test_any_number_of_threads_gives_the_same():
    window, tile = channels_last(9, 32, 14, 14), len(winograd.TILES) // 4
    packed = winograd.pack(weights_of(tile, 48, 32), tile)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(ops.winograd(window, packed, None, None, [0, 0], 48, tile, -INF, INF))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], result) for result in results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@tiles
def test_the_default_type_does_not_matter(tile, dtype):
    window, weight = channels_last(3, 32, 14, 14), weights_of(tile, 48, 32)
    want = ops.winograd(window, winograd.pack(weight, tile), None, None, [0, 0], 48, tile, -INF, INF)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        got = ops.winograd(window, winograd.pack(weight, tile), None, None, [0, 0], 48, tile, -INF, INF)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(got, want)


@native
def test_nan_comes_through():
    window = channels_last(2, 16, 9, 9)
    window[0, 3, 4, 4] = float("nan")
    packed = winograd.pack(weights_of(2, 16, 16), 2)
    result = ops.winograd(window, packed, None, None, [0, 0], 16, 2, 0.0, INF)
    assert result[0, :, 3, 3].isnan().all()
    assert result[1].isfinite().all()


@native
@pytest.mark.parametrize("origin", [(3, 0, 0), (-1, 0, 0), (0, 9, 0), (0, 0, 11), (0, -1, 0), (0, 0, -1)])
def test_a_window_outside_its_base_is_refused(origin):
    base, patch = torch.randn(3, 17, 19, 16), channels_last(2, 16, 3, 3)
    origins, offsets = torch.tensor([(0, 0, 0), origin]), torch.zeros(2, 2, dtype=torch.int64)
    packed = winograd.pack(weights_of(0, 16, 16), 0)
    with pytest.raises(IndexError, match="window"):
        ops.gather_winograd(base, patch, origins, offsets, [9, 9], packed, None, None, [0, 0], 16, 0, -INF, INF)


@native
def test_what_does_not_fit_is_refused():
    window, packed = channels_last(2, 17, 9, 9), winograd.pack(weights_of(0, 16, 16), 0)
    with pytest.raises(ValueError, match="17 channels"):
        ops.winograd(window, packed, None, None, [0, 0], 16, 0, -INF, INF)
    with pytest.raises(ValueError, match="tile 2"):
        ops.winograd(window[:, :16], packed, None, None, [0, 0], 16, 2, -INF, INF)
    with pytest.raises(ValueError, match="bias"):
        ops.winograd(window[:, :16], packed, torch.zeros(15), None, [0, 0], 16, 0, -INF, INF)
    base, origins, offsets = torch.randn(1, 9, 9, 16), torch.zeros(2, 3).long(), torch.zeros(2, 2).long()
    rest = ([9, 9], packed, None, None, [0, 0], 16, 0, -INF, INF)
    for patch, first in ((window, origins), (window[:1, :16], origins), (window[:, :16], origins.int())):
        with pytest.raises(ValueError, match="origins"):
            ops.gather_winograd(base, patch, first, offsets, *rest)
    with pytest.raises(ValueError, match="can't add"):
        ops.winograd(window[:, :16], packed, None, torch.zeros(2, 16, 9, 9), [0, 0], 16, 0, -INF, INF)


@pytest.mark.parametrize("tile", [0, 4])
def test_opcheck(tile):
    packed = winograd.pack(weights_of(tile, 16, 16), tile)
    arguments = (packed, torch.randn(16), None, [0, 0], 16, tile, -INF, INF)
    torch.library.opcheck(ops.winograd.default, (channels_last(2, 16, 9, 9), *arguments))
    origins, offsets = torch.tensor([[0, 1, 2], [1, 0, 0]]), torch.tensor([[1, 1], [-2, 3]])
    base, patch = torch.randn(2, 12, 12, 16), channels_last(2, 16, 3, 3)
    torch.library.opcheck(ops.gather_winograd.default, (base, patch, origins, offsets, [9, 9], *arguments))


def test_works_estimate_is_that_of_the_products():
    direct = 12 * 12 * 9 * 256 * 256
    assert direct / 4 < winograd.work(2, 12, 12, 256, 256) < direct / 2.5


@native
@pytest.mark.parametrize("flags", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avx")])
def test_narrower_vectors_give_the_same(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("KCOMPILE_CACHE", str(tmp_path))
    try:
        narrow = native_build.load(flags=(*native_build._FLAGS, *flags))
    except native_build.NativeError as error:
        pytest.skip(f"the compiler has no such option: {error}")
    window, packed = channels_last(2, 24, 11, 10), winograd.pack(weights_of(2, 40, 24), 2)
    arguments = (window, packed, torch.randn(40), None, [1, 1], 40, 2, 0.0, INF)
    want = ops.winograd(*arguments)
    monkeypatch.setattr(native_build, "library", lambda: narrow)
    torch.testing.assert_close(ops.winograd(*arguments), want, rtol=0, atol=TOLERANCE * float(want.abs().max()))


class TestBuild:
    """Without a compiler the ops still work; what is compiled is kept."""

    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KCOMPILE_CACHE", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        native_build.library.cache_clear()
        yield
        native_build.library.cache_clear()

    def test_switched_off(self, monkeypatch, caplog):
        monkeypatch.setenv("KCOMPILE_NATIVE", "0")
        with caplog.at_level(logging.INFO, "kcompile"):
            assert not winograd.supported()
        assert "KCOMPILE_NATIVE is 0" in caplog.text
        assert native_build.status() == "native CPU kernels: off (KCOMPILE_NATIVE is 0)"
        packed = winograd.pack(weights_of(0, 16, 16), 0)
        window = channels_last(2, 16, 9, 9)
        got = ops.winograd(window, packed, None, None, [0, 0], 16, 0, -INF, INF)
        assert torch.equal(got, winograd.reference(window, packed, None, None, [0, 0], 16, 0, -INF, INF))

    def test_a_missing_compiler_is_named(self, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(native_build.NativeError, match="no-such-compiler"):
            native_build.load()

    def test_no_compiler_at_all(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert not winograd.supported()
        assert "no C++ compiler" in native_build.status()

    @pytest.mark.parametrize("command", ["c++ -DX='a", "", "/"])
    def test_a_compiler_that_makes_no_sense_is_no_error(self, command, monkeypatch):
        monkeypatch.setenv("CXX", command)
        assert winograd.supported() == (command == "")  # as if it were not set

    @native
    def test_a_relative_cache(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KCOMPILE_CACHE", "relative")
        assert winograd.supported()
        assert list((tmp_path / "relative" / "native").glob("*.so"))

    @native
    @pytest.mark.parametrize("left", [0.0, 0.5, 0.9])
    def test_a_file_that_was_cut_off_is_compiled_again(self, left, tmp_path):
        native_build.load()
        (path,) = (tmp_path / "native").glob("*.so")
        content = path.read_bytes()
        path.unlink()  # it is loaded, so that writing into it would end this process
        path.write_bytes(content[: int(left * len(content))])
        native_build.load()
        assert path.read_bytes() == content

    @native
    def test_a_cache_that_others_may_write_to_is_refused(self, tmp_path):
        native_build.load()
        (path,) = (tmp_path / "native").glob("*.so")
        for exposed in (path, path.parent, tmp_path):
            mode = exposed.stat().st_mode
            exposed.chmod(mode | 0o002)
            with pytest.raises(native_build.NativeError, match="others may write"):
                native_build.load()
            exposed.chmod(mode)
        native_build.load()

    def test_a_failing_compiler_shows_what_it_said(self):
        with pytest.raises(native_build.NativeError, match="no-such-option"):
            native_build.load("c++", ("--no-such-option",))

    @native
    def test_a_second_load_takes_the_first_ones_file(self, tmp_path: Path, monkeypatch):
        native_build.load()
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")}
        assert len(files) == 1
        monkeypatch.setattr(native_build, "_compile", None)
        native_build.load()
        assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
