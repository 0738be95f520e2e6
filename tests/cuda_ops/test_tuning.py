"""Choosing by measurement: the fastest way that is right, kept in a file that may be damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kcompile.cuda_ops import kept
from kcompile.cuda_ops.tuning import Tuner, fastest


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "new")


def ways(**seconds: float) -> Callable[[], dict[int, Any]]:
    """Ways that tell the clock below how long they take."""

    def way(value: float) -> Callable[[], Tensor]:
        def call() -> Tensor:
            if value < 0:
                raise RuntimeError("out of resource: shared memory")
            return torch.tensor([1.0, value])

        return call

    return lambda: {number: way(value) for number, value in enumerate(seconds.values(), -1)}


def made(name: str = "a GPU") -> tuple[Tuner, list[float]]:
    calls: list[float] = []

    def clock(call: Callable[[], Tensor]) -> float:
        calls.append(float(call()[1]))
        return calls[-1]

    return Tuner(name, clock, {}), calls


@pytest.mark.parametrize(
    ("seconds", "error", "best"),
    [
        ((1.0, 0.5, 0.2), 9.0, 1),
        ((1.0, 0.99, 1.2), 9.0, -1),  # too little gained
        ((1.0, -1.0, 0.9), 9.0, 1),  # one fails
        ((1.0, 0.2, 0.8), 0.5, 1),  # one is wrong
    ],
)
def test_fastest_way(seconds: tuple[float, ...], error: float, best: int) -> None:
    tuner, calls = made()
    given = ways(**dict(zip("abc", seconds, strict=True)))
    assert tuner.choose(("shape", 3), given, error) == best
    count = len(calls)
    assert tuner.choose(("shape", 3), given, error) == best
    again, more = made()
    assert again.choose(("shape", 3), given, error) == best
    assert (len(calls), more) == (count, []), "measured once"


def test_other_devices_and_shapes_are_measured_anew() -> None:
    for name, key in (("a GPU", ("a",)), ("a GPU", ("b",)), ("another GPU", ("a",))):
        tuner, calls = made(name)
        tuner.choose(key, ways(a=1.0, b=0.5), 9.0)
        assert calls == [1.0, 0.5]


@pytest.mark.parametrize(
    "damage",
    [b"", b"x" * 99, b"{}", b"[1]", b'{"key": "(1,)", "times": []}', b'{"key": "(1,)", "times": [[-1, null]]}',
     b'{"key": "(2,)", "times": [[-1, 1.0], [0, 0.1]]}', b'{"key": "(1,)", "times": [[-1, NaN], [0, 0.1]]}'],
)  # fmt: skip
@pytest.mark.parametrize("signed", [False, True])
def test_damaged_files_are_measured_again(damage: bytes, signed: bool, tmp_path: Path) -> None:
    made()[0].choose((1,), ways(a=1.0, b=2.0), 9.0)
    (file,) = (tmp_path / "new" / "tuning").iterdir()
    file.write_bytes(damage)
    if signed:
        kept.write(file, damage)
    tuner, calls = made()
    assert tuner.choose((1,), ways(a=1.0, b=2.0), 9.0) == -1
    assert len(calls) == 2


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "folder", lambda: None)
    tuner, calls = made()
    for _ in range(2):
        assert tuner.choose((1,), ways(a=1.0, b=0.5), 9.0) == 0
    assert len(calls) == 2


def test_short_memory_is_not_a_wrong_way() -> None:
    def short() -> Tensor:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        made()[0].choose((1,), lambda: {-1: lambda: torch.ones(2), 0: short}, 9.0)


def test_the_first_way_where_nothing_is_faster() -> None:
    assert fastest([(-1, 1.0)]) == -1
    assert fastest([(-1, 1.0), (0, None), (1, 0.98)]) == -1
