"""Special functions in ONNX Runtime, on many numbers, against SciPy; at the ends of what they take against PyTorch.

PyTorch's own ones err by up to 2e-5 of the result (Ai at -2.09, J0 near its second root, also in float64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special as sp
import torch
from onnx import helper
from torch import Tensor

import kcompile.passes.to_onnx.walk  # noqa: F401  (it imports the table's rows)
from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx import ops_airy, ops_bessel, ops_erf, ops_gamma, ops_incomplete, ops_waves
from kcompile.passes.to_onnx.call import LOWERINGS, Call, Value, dtype_of
from kcompile.passes.to_onnx.fits import Fit
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.ops_polynomials import _FAMILIES, _SHIFTED
from kcompile.passes.to_onnx.weights import Weights
from tests.support.exported import CPU

COUNT = 20_000


def target(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def in_onnx(name: str, *args: Any, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """An op's lowering alone, run on tensors (and numbers, which are written into the graph)."""
    op, graph, given = target(name), Graph(Weights(inside=True), "one"), {}
    described: dict[str, Any] = {}
    for argument, value in zip(op._schema.arguments, args, strict=False):
        described[argument.name] = value
        if isinstance(value, Tensor):
            given[argument.name] = value.numpy()
            graph.input(argument.name, dtype_of(value.dtype), [None] * value.dim())
            described[argument.name] = Value(argument.name, value.dtype, (None,) * value.dim())
    rank = max(value.dim() for value in args if isinstance(value, Tensor))
    found = LOWERINGS[str(op)](Call(graph, str(op), described, (Value("", dtype, (None,) * rank),), "one"))
    assert isinstance(found, str)
    graph.output(found, "result", dtype_of(dtype), [None] * rank)
    model = helper.make_model(graph.proto(), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU).run(None, given)[0])


@dataclass(frozen=True)
class Row:
    """A function on an interval.

    Attributes:
        name: Of the op.
        want: The same in float64.
        low: Of the interval, like ``high``: one number per tensor.
        high: See there.
        share: How far results may be off, of their size and of ``floor``: that of the terms that cancel at its roots.
        floor: See there.
        rest: Further arguments.
        whole: The first argument are integers.
    """

    name: str
    want: Callable[..., Any]
    low: tuple[float, ...]
    high: tuple[float, ...]
    share: float = 1e-6
    floor: float = 1e-36
    rest: tuple[Any, ...] = ()
    whole: tuple[bool, ...] = (False, False)

    def points(self) -> list[Tensor]:
        """Numbers in float32; the ends among them."""
        found = []
        for low, high, whole in zip(self.low, self.high, self.whole, strict=False):
            values = torch.empty(COUNT).uniform_(low, high)
            values[0], values[-1] = low, high
            found.append(values.round() if whole else values)
        return found


def _multivariate(x: Any, p: int) -> Any:
    return sum(sp.gammaln(x - j / 2) for j in range(p)) + p * (p - 1) / 4 * math.log(math.pi)


WANT: dict[str, Callable[..., Any]] = {
    "lgamma": sp.gammaln, "digamma": sp.psi, "mvlgamma": _multivariate, "polygamma": sp.polygamma, "zeta": sp.zeta,
    "erfinv": sp.erfinv, "erfcx": sp.erfcx, "erfc": sp.erfc, "ndtr": sp.ndtr, "log_ndtr": sp.log_ndtr,
    "ndtri": sp.ndtri, "i0": sp.i0, "i1": sp.i1, "i0e": sp.i0e, "i1e": sp.i1e, "modified_bessel_i0": sp.i0,
    "modified_bessel_i1": sp.i1, "modified_bessel_k0": sp.k0, "modified_bessel_k1": sp.k1,
    "scaled_modified_bessel_k0": sp.k0e, "scaled_modified_bessel_k1": sp.k1e, "bessel_j0": sp.j0, "bessel_j1": sp.j1,
    "bessel_y0": sp.y0, "bessel_y1": sp.y1, "spherical_bessel_j0": lambda x: sp.spherical_jn(0, x),
    "airy_ai": lambda x: sp.airy(x)[0], "gammainc": sp.gammainc, "gammaincc": sp.gammaincc,
}  # fmt: skip


def rows(names: str, low: float | tuple[float, ...], high: float | tuple[float, ...], **options: Any) -> list[Row]:
    """One row for each function."""
    found = []
    for name in names.split():
        op = name if hasattr(torch.ops.aten, name) and name not in ("i0", "i1") else f"special_{name}"
        ends = [(end,) if isinstance(end, (int, float)) else end for end in (low, high)]
        found.append(Row(op, WANT[name], *ends, **options))
    return found


ROWS = [
    *rows("lgamma digamma", 0, 12),
    *rows("lgamma digamma", 12, 1e30),
    *rows("lgamma", -20, 0, floor=10.0),
    *rows("digamma", -6, 0, floor=3.0),
    *rows("mvlgamma", 2.6, 30, floor=5.0, rest=(4,)),
    *rows("polygamma", 0.1, 20, rest=(1,)),
    *rows("polygamma", 0.1, 20, rest=(5,)),
    *rows("zeta", (1.1, 0.1), (30, 30), share=3e-6),
    *rows("zeta", (2, -7), (6, 0), share=3e-6, floor=30.0, whole=(True, False)),
    *rows("erfinv", -1, 1),
    *rows("erfcx", -9, 1e4),
    *rows("erfc", -4, 9),
    *rows("ndtr", -12, 4),
    *rows("log_ndtr", -100, 5, share=3e-6),
    *rows("ndtri", 0, 1, floor=0.1),
    *rows("ndtri", 1e-37, 1e-30),
    *rows("i0 i1 modified_bessel_i0 modified_bessel_i1", -85, 85, share=2e-6),
    *rows("i0e i1e", -100, 100, share=2e-6),
    *rows("modified_bessel_k0 modified_bessel_k1", 0, 80),
    *rows("scaled_modified_bessel_k0 scaled_modified_bessel_k1", 0, 100),
    *rows("bessel_j0 bessel_j1", -8, 8, share=3e-6, floor=1e-2),
    *rows("bessel_j0 bessel_j1 bessel_y0 bessel_y1", 0, 100, share=2e-6, floor=0.5),
    *rows("spherical_bessel_j0", -30, 30, floor=0.1),
    *rows("airy_ai", -6, 1, share=2e-6, floor=0.5),
    *rows("airy_ai", 1, 20, share=1e-5),  # its exponent's rounding, as PyTorch's
    *rows("airy_ai", -50, -5, share=2e-5, floor=0.5),  # its angle's
    *rows("gammainc gammaincc", (0.01, 0), (5, 10), share=5e-6),
    *rows("gammainc gammaincc", (0.1, 0.1), (300, 300), floor=0.1),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.low} {row.high}")
def test_agrees_to_rounding(row: Row, seed: int) -> None:
    points = row.points()
    given = [*row.rest, *points] if row.name == "polygamma" else [*points, *row.rest]
    want = row.want(*(v.double().numpy() if isinstance(v, Tensor) else v for v in given))
    got = in_onnx(row.name, *given).astype(np.float64)
    fits = np.abs(want) < 3e38
    assert fits.mean() > 0.9
    off = np.abs(got[fits] - want[fits]) / (np.abs(want[fits]) + row.floor)
    assert off.max() <= row.share, f"at {[float(p[fits][off.argmax()]) for p in points]}"


ENDS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.5, 10.0, -10.0, 100.0, -100.0, 1e-30, -1e-30, 1e30, -1e30,
        math.inf, -math.inf, math.nan]  # fmt: skip
ONE_TENSOR = list(dict.fromkeys((row.name, row.rest) for row in ROWS if len(row.low) == 1))
# PyTorch's trigamma at -1, -2, … is as large as the rounding of π makes it; the others are infinite at -inf, or NaN.
OTHERS = {("polygamma", (1,)): lambda x: (x < 0) & (x == np.floor(x)), ("polygamma", (5,)): np.isinf}


@pytest.mark.parametrize(("name", "rest"), ONE_TENSOR, ids=str)
def test_agrees_with_pytorch_at_the_ends(name: str, rest: tuple[Any, ...]) -> None:
    points = torch.tensor(ENDS)
    given = [*rest, points] if name == "polygamma" else [points, *rest]
    want, got = target(name)(*given).numpy(), in_onnx(name, *given)
    same = np.isclose(got, want, rtol=2e-5, atol=1e-7, equal_nan=True)
    same |= OTHERS.get((name, rest), np.zeros_like)(points.numpy()).astype(bool)
    assert same.all(), f"at {points[~same].tolist()}: {got[~same]}, not {want[~same]}"


@pytest.mark.parametrize("name", ["special_gammainc", "special_gammaincc"])
def test_incomplete_gamma_functions_at_the_ends(name: str) -> None:
    a, x = (t.reshape(-1) for t in torch.meshgrid(torch.tensor(ENDS), torch.tensor(ENDS), indexing="ij"))
    want, got = target(name)(a, x).numpy(), in_onnx(name, a, x)
    same = np.isclose(got, want, rtol=1e-5, atol=1e-7, equal_nan=True)
    same |= (a.isinf() & x.isnan()).numpy()  # PyTorch has numbers there
    assert same.all(), f"at {a[~same].tolist()}, {x[~same].tolist()}: {got[~same]}, not {want[~same]}"


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0, 2.5, 3.0])
def test_zeta_at_the_ends(s: float) -> None:
    """At integers not above 0, and between these, where only a sum of whole powers is real."""
    q = torch.tensor([0.0, -0.0, -1.0, -7.0, -0.5, -2.25, 1e-30, 1.0, 1e30, math.nan])
    want, got = target("special_zeta.self_scalar")(s, q).numpy(), in_onnx("special_zeta.self_scalar", s, q)
    assert np.allclose(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("degrees", "ends"), [([-1.0, 0, 1, 1.9, 2, 3, 7], 1.3), ([20.0, 130], 1.0)], ids=["low", "high"]
)
@pytest.mark.parametrize("name", [*_FAMILIES, *_SHIFTED])
def test_orthogonal_polynomials(name: str, degrees: list[float], ends: float, seed: int) -> None:
    """In between their degrees are rounded towards 0; each step adds its rounding."""
    name, n = f"special_{name}", torch.tensor(degrees)
    least = 0.0 if "shifted" in name else -ends
    x = torch.empty(200, 1).uniform_(least, ends)
    x[:2, 0] = torch.tensor([least, ends])  # they are largest there: what errors are measured by, for every seed
    want, got = target(name)(x.double(), n.double()).numpy(), in_onnx(name, x, n.expand(1, -1))
    if "hermite" in name and degrees[-1] > 128:
        assert np.isnan(got[:, -1]).all()  # as PyTorch's in float32
        got, want = got[:, :-1], want[:, :-1]
    off = np.abs(got - want).max(axis=0) / np.maximum(np.abs(want).max(axis=0), 1e-30)
    assert (off <= 1e-6 * (1 + n.abs().numpy()[: len(off)])).all()
    assert np.array_equal(in_onnx(f"{name}.n_scalar", x, int(degrees[0])), got[:, :1])
    assert np.array_equal(in_onnx(f"{name}.x_scalar", float(x[0]), n[:1]), got[0, :1])
    assert in_onnx(name, x[:0], n.expand(1, -1)).shape == (0, len(n))


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, torch.int32), (torch.float16, torch.int16)], ids=str)
def test_neighbouring_numbers(dtype: torch.dtype, bits: torch.dtype, seed: int) -> None:
    """Of all kinds of numbers: random bits; float16's all."""
    info = torch.iinfo(bits)
    some = (
        torch.arange(info.min, info.max + 1) if bits == torch.int16 else torch.randint(info.min, info.max, (200_000,))
    )
    x, y = some.to(bits).view(dtype), some[torch.randperm(len(some))].to(bits).view(dtype)
    ends = torch.tensor([math.inf, -math.inf, 0.0, -0.0, math.nan, 1.0, torch.finfo(dtype).max], dtype=dtype)
    x = torch.cat([x, ends.repeat_interleave(7), ends])
    y = torch.cat([y, ends.repeat(7), ends])
    with np.errstate(over="ignore", invalid="ignore"):
        want = np.nextafter(x.numpy(), y.numpy())
    assert np.array_equal(in_onnx("nextafter", x, y, dtype=dtype), want, equal_nan=True)
    assert (want != x.numpy()).mean() > 0.9


def test_neighbours_of_other_types_are_refused() -> None:
    with pytest.raises(OnnxExportError, match=r"(?s)nextafter.*float64.*float16, torch\.float32"):
        in_onnx("nextafter", *torch.ones(2, 3, dtype=torch.float64), dtype=torch.float64)


def test_common_divisors(seed: int) -> None:
    a, b = torch.randint(-(2**31), 2**31, (2, 1000))
    a[:3], b[:3] = torch.tensor([0, 0, 12]), torch.tensor([0, 5, 0])
    a[3], b[3] = 7540113804746346429, 4660046610375530309  # Fibonacci's 92nd and 91st: the most steps
    assert np.array_equal(in_onnx("gcd", a, b, dtype=torch.int64), np.gcd(a.numpy(), b.numpy()))
    a, b = a[4:] % 10_000, b[4:] % 10_000
    assert np.array_equal(in_onnx("lcm", a, b, dtype=torch.int64), np.lcm(a.numpy(), b.numpy()))


@pytest.mark.parametrize("name", ["lgamma", "special_bessel_j1", "erfinv", "special_i1"])
def test_half_precision_is_rounded_at_the_end(name: str, seed: int) -> None:
    x = (torch.rand(500) * 0.98 + 0.01).half()
    want = target(name)(x.double()).half()
    assert np.abs(in_onnx(name, x, dtype=torch.float16) - want.numpy()).max() <= 1e-3 * float(want.abs().max())


IN_FLOAT64 = ["lgamma", "digamma", "special_bessel_j0", "special_bessel_y1", "special_i0e", "special_airy_ai",
              "special_modified_bessel_k1", "special_erfcx", "erfinv"]  # fmt: skip


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_float64(name: str, seed: int) -> None:
    row = next(row for row in ROWS if row.name == name)
    x = torch.empty(1000, dtype=torch.float64).uniform_(row.low[0], row.high[0])
    want = row.want(x.numpy())
    off = np.abs(in_onnx(name, x, dtype=torch.float64) - want) / (np.abs(want) + max(row.floor, 1e-2))
    assert off.max() <= 1e-11


def _fits() -> Iterator[tuple[str, Fit]]:
    for module in (ops_airy, ops_bessel, ops_erf, ops_gamma, ops_incomplete):
        yield from ((name, value) for name, value in vars(module).items() if isinstance(value, Fit))
    yield from ((f"{order} {name}", fit) for order, fits in enumerate(ops_waves._FITS) for name, fit in fits.items())


@pytest.mark.parametrize(("name", "fit"), [*_fits()], ids=lambda value: value if isinstance(value, str) else "")
def test_fitted_series_end(name: str, fit: Fit) -> None:
    """A function that is not smooth on its interval would need all the terms there are."""
    assert 2 <= len(fit.series(torch.float32)) <= 32
