"""The base store: what is kept of the base images, padded with the reader's fill."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kcompile.core.plan import BaseTensor
from kcompile.runtime import base_store
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.derived import Derived
from tests.support.networks import Branches, Call, concat, conv
from tests.support.running import compile_incremental

SHAPE = (3, 9, 11)


def filled(model: nn.Module, images: Tensor) -> tuple[BaseStore, dict[str, BaseTensor]]:
    compiled = compile_incremental(model.double().eval(), SHAPE, (3, 2))
    with torch.no_grad():
        _, sources = compiled.materialize(images)
    return BaseStore.fill(compiled.plan, sources, images), {base.name: base for base in compiled.plan.bases}


@pytest.mark.parametrize("count", [1, 3])
def test_the_image_padded_with_zeros(count: int, seed: int) -> None:
    images = torch.randn(count, *SHAPE, dtype=torch.float64)
    store, bases = filled(conv(3, 2, (5, 3)), images)
    (name,) = (name for name, base in bases.items() if any(map(any, base.padding)))
    stored = store.tensors[name]
    assert bases[name].padding == ((2, 2), (1, 1))
    assert stored.shape == (count, 13, 13, 3)
    assert stored.is_contiguous()
    assert torch.equal(stored[:, 2:-2, 1:-1], images.permute(0, 2, 3, 1))
    assert stored.sum().item() == pytest.approx(images.sum().item())
    assert store.count == count


def test_a_max_pools_padding_is_minus_infinity(seed: int) -> None:
    images = torch.randn(1, *SHAPE, dtype=torch.float64)
    store, bases = filled(Branches(concat, nn.MaxPool2d(3, 1, 1), conv(3, 2)), images)
    by_fill = {base.fill: store.tensors[name] for name, base in bases.items() if any(map(any, base.padding))}
    assert set(by_fill) == {0.0, float("-inf")}
    for fill, stored in by_fill.items():
        border = torch.ones(stored.shape[1:3], dtype=torch.bool)
        border[1:-1, 1:-1] = False
        assert (stored[0][border] == fill).all()
        assert torch.equal(stored[:, 1:-1, 1:-1], images.permute(0, 2, 3, 1))


def constants(shape: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """What is stored of a constant that a map is multiplied with, and the constant as [1, *sizes, C]."""
    constant = torch.randn(shape, dtype=torch.float64)
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    store, bases = filled(Call(lambda x, c: torch.tanh(x) * c, c=constant), images)
    kept = [store.tensors[name] for name, base in bases.items() if not base.batched]
    return kept, constant.expand(1, *SHAPE).permute(0, 2, 3, 1)


@pytest.mark.parametrize("shape", [(3, 9, 11), (1, 1, 9, 11), (9, 11), (11,), (1, 3, 9, 1)])
def test_a_constant_map_is_stored_once_for_all_bases(shape: tuple[int, ...], seed: int) -> None:
    (stored,), wanted = constants(shape)
    assert stored.shape[0] == 1
    assert torch.equal(stored.expand_as(wanted), wanted)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1,), ()])
def test_a_constant_without_a_map_needs_no_window(shape: tuple[int, ...], seed: int) -> None:
    assert constants(shape)[0] == []


def test_bytes(seed: int) -> None:
    store, _ = filled(conv(3, 2), torch.randn(2, *SHAPE, dtype=torch.float64))
    image, output = 2 * (9 + 2) * (11 + 2) * 3, 2 * 9 * 11 * 2
    assert store.nbytes == 8 * (image + output)


def test_derived_tensors_are_made_once_and_waited_for(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Streams are a stand-in: each says what it waited for."""
    images = torch.randn(1, *SHAPE)
    waited: list[tuple[str, object]] = []
    events, streams, made = iter("ABC"), ["one"], []

    class Stream:
        def wait_event(self, event: object) -> None:
            waited.append((streams[-1], event))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(base_store, "_written", lambda _: next(events))
    store = BaseStore({"x": images}, images)
    how = Derived("x", lambda tensor: made.append(1) or 2 * tensor)  # type: ignore[func-returns-value]
    assert torch.equal(store.derived("sums", how), 2 * images)
    streams.append("two")
    assert torch.equal(store.derived("sums", how), 2 * images)
    assert len(made) == 1
    assert waited == [("one", "A"), ("two", "A")]
    monkeypatch.undo()
    assert base_store._written(images) is None, "on a CPU it is written when it is there"
