"""What PyTorch is asked for when CUDA graphs are captured; the device is a stand-in that notes what it is told."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, cycle
from typing import Any

import pytest
import torch

from kcompile.runtime import captures, replaying
from kcompile.runtime.captures import Captures


class Stream:
    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


class Device:
    """Has some streams, that it hands out in turn; ``mode``: whether ops that wait raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, streams: int = 3) -> None:
        self.said: list[Any] = []
        self.mode: int | str = 1
        self.current = Stream(0)
        self.index = 3
        pools, given = iter("ABCDEFGH"), cycle([Stream(handle) for handle in range(1, streams + 1)])

        class Graph:
            def replay(_) -> None:  # noqa: N805
                self.said.append("replayed")

        @contextmanager
        def graph(made: Graph, *, pool: str, stream: Stream, capture_error_mode: str) -> Iterator[None]:
            """As PyTorch 2.11: where a capture fails, its stream stays."""
            assert isinstance(made, Graph)
            self.said.append(("begin", pool, stream.cuda_stream, capture_error_mode))
            before, self.current = self.current, stream
            yield
            self.current = before
            self.said.append("end")

        def stream(index: int) -> Stream:
            assert index == self.index, "of the device that is current"
            return next(given)

        graph.default_capture_stream = Stream(99)  # type: ignore[attr-defined]
        self.reserved = count(100, 0)
        for name, value in {
            "graph_pool_handle": lambda: next(pools), "CUDAGraph": Graph, "graph": graph, "empty_cache": lambda: None,
            "memory_reserved": lambda: next(self.reserved), "current_device": lambda: self.index, "Stream": stream,
            "synchronize": lambda device: self.said.append(("wait", device)),
            "current_stream": lambda: self.current, "set_stream": lambda given: setattr(self, "current", given),
            "get_sync_debug_mode": lambda: self.mode, "set_sync_debug_mode": self.watch,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(captures, "_owners", type(captures._owners)())

    def watch(self, mode: int | str) -> None:
        self.mode = mode
        warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=1)

    def streams(self) -> list[int]:
        """That was captured on, so far."""
        return [part[2] for part in self.said if part[0] == "begin"]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_memory_is_from_one_pool(device: Device) -> None:
    """In the order that PyTorch asks for."""
    device.reserved = iter([100, 150, 150, 140, 140, 145])  # type: ignore[assignment]
    made = Captures()
    replay, taken = made(lambda: device.said.append("called"))
    assert device.said == [("begin", "A", 1, "thread_local"), "called", "end"]
    assert taken == 50
    replay()
    assert made(lambda: None)[1] == 0, "memory that others gave back meanwhile"
    made.wait()
    made.forget()
    made(lambda: None)
    assert [part[1] for part in device.said if part[0] == "begin"] == ["A", "A", "B"]
    assert device.streams() == [1, 1, 1]
    assert ("wait", 3) in device.said


def test_modules_capture_on_streams_of_their_own(device: Device) -> None:
    """Though PyTorch hands the same ones out again; those of modules that are gone are free."""
    made = [Captures() for _ in range(3)]
    for one in made:
        one(lambda: None)
    assert device.streams() == [1, 2, 3]
    with pytest.raises(RuntimeError, match="all 32 streams of device 3 are taken"):
        Captures()(lambda: None)
    del made[1], one
    Captures()(lambda: None)
    assert device.streams()[-1] == 2


def test_not_on_the_stream_that_others_capture_on(device: Device) -> None:
    torch.cuda.graph.default_capture_stream = torch.cuda.Stream(3)
    assert torch.cuda.graph.default_capture_stream.cuda_stream == 1
    for _ in range(4):
        Captures()(lambda: None)
    assert 1 not in device.streams()


def test_devices_have_streams_of_their_own(device: Device) -> None:
    made = Captures()
    made(lambda: None)
    device.index = 4
    other = Captures()
    other(lambda: None)
    assert (made.device, other.device) == (3, 4)


def test_a_capture_that_fails_leaves_the_stream_as_it_was(device: Device) -> None:
    before = device.current

    def fails() -> None:
        assert device.current is not before
        raise RuntimeError("operation not permitted when stream is capturing")

    made = Captures()
    with pytest.raises(RuntimeError, match="not permitted"):
        made(fails)
    assert device.current is before
    made(lambda: None)  # and no lock stays


def waits(device: Device) -> str:
    if device.mode == "error":
        raise RuntimeError("called a synchronizing CUDA operation")
    return "done"


def test_what_waits_is_found_beforehand(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with pytest.raises(RuntimeError, match="synchronizing"):
        Captures().rehearsed(lambda: waits(device))
    assert device.mode == 1, "as it was"
    assert Captures().rehearsed(lambda: device.mode) == "error"
    assert device.mode == 1


def test_other_threads_may_wait(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's switch is for all of them."""
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert Captures().rehearsed(lambda: waits(device)) == "done"
    assert device.mode == 1


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("2.11.0+cu130", False), ("2.12.1", False), ("2.13.0", True), ("2.15.0.dev2026", True), ("3.0.0a0+git1", True),
        ("1.14.0", False),
    ],
)  # fmt: skip
def test_no_graphs_where_a_failing_capture_does_harm(version: str, safe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    front, cuda = torch.fx.symbolic_trace(lambda patches: (patches,)), torch.device("cuda")
    made = replaying.__dict__["replaying"]
    assert captures.cleans_up() == safe
    assert (made(front, cuda, None, lambda _: 0) is not None) == safe
    monkeypatch.setattr(replaying, "ENABLED", True)
    assert made(front, cuda, None, lambda _: 0) is not None, "where that is asked for"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of another device than the first one is not empty; and what waits is found."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    kept = []
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            kept.append(made := Captures())
            value = torch.zeros(3, device=f"cuda:{index}")
            made.rehearsed(lambda: value.add_(1))  # noqa: B023
            replay, _ = made(lambda: value.add_(1))  # type: ignore[arg-type, return-value]  # noqa: B023
            value.zero_()
            replay()
            assert value.tolist() == [1.0, 1.0, 1.0]
            with pytest.raises(RuntimeError, match="synchronizing"):
                made.rehearsed(value.sum().item)
            assert value.tolist() == [1.0, 1.0, 1.0], "waiting is allowed again"
