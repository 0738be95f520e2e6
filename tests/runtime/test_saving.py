"""Saved modules: the same results, bit by bit, in a process that has neither the compiler nor the model's code."""

from __future__ import annotations

import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import kcompile
from kcompile.runtime.portable import GRAPHS
from tests.support.equivalence import (
    SHAPE,
    assert_equivalent,
    compiled,
    full_inference,
    incremental,
    noise,
    reacting,
    refused,
    some_positions,
)
from tests.support.running import incremental_wherever_possible, paste
from tests.support.saved_networks import SAVED, Scores

BLOCKED = Path(__file__).parent.parent / "support" / "without_compiler.py"


def leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def assert_same(mine: Any, want: Any) -> None:
    """Bit by bit, types included."""
    for one, other in zip(leaves(mine), leaves(want), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_without_compiler_and_model(tmp_path: Path, seed: int) -> None:
    """Every network in one process of its own, where importing kcompile.passes or these tests fails."""
    for number, (name, network) in enumerate(SAVED.items()):
        model, shape = network.made(), network.shape
        inc = incremental(model, shape, network.patch)
        image = noise((2, *shape), network.dtype)
        before = inc.materialize(image)
        positions = some_positions(shape[1:], network.patch, np.random.default_rng(seed))
        patches = noise((len(positions), shape[0], *network.patch), network.dtype, 3.0)
        got = inc.forward_patches(patches, positions)
        if network.dtype.itemsize >= 4:
            full = model(paste(image[:1].expand(len(positions), *shape), patches, positions))
            base = [leaf[:1] for leaf in _rows(before, len(image))]
            assert_equivalent(_rows(got, len(positions)), _rows(full, len(positions)), base)
        inc.save(tmp_path / f"{number}.kcompile")
        facts = {
            "name": name,
            "image": image,
            "plain": leaves(model(image)),
            "before": leaves(before),
            "patches": patches,
            "positions": torch.from_numpy(positions),
            "got": leaves(got),
            "front": inc.front.code,
            "plan": str(inc.plan),
            "structure": _names(got),
            "map": len(shape) == 3 and network.scored,
        }
        torch.save(facts, tmp_path / f"{number}.facts")
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", str(BLOCKED), str(tmp_path), str(Path(kcompile.__file__).parent.parent)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: fine" for name in SAVED]


def _rows(tree: Any, rows: int) -> list[Tensor]:
    """The tensors with a row per image."""
    return [leaf.unsqueeze(-1) for leaf in leaves(tree) if leaf.is_floating_point() and len(leaf) == rows]


def _names(tree: Any) -> str:
    return str(pytree.tree_map(lambda leaf: None if isinstance(leaf, Tensor) else leaf, tree))


def test_a_real_network(tmp_path: Path, seed: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    shape = (3, 96, 96)
    model = reacting(torchvision.models.resnet18(), noise((8, *shape)))
    inc, path = incremental(model, shape, (16, 16)), tmp_path / "resnet18.kcompile"
    inc.save(path)
    again = kcompile.load(path)
    image = noise(shape)
    positions = some_positions(shape[1:], (16, 16), np.random.default_rng(seed))
    assert_same(again.materialize(image), inc.materialize(image))
    got = again.forward_patches(3.0, positions)
    assert_same(got, inc.forward_patches(3.0, positions))
    full = full_inference(model, image[None], torch.full((1, 3, 16, 16), 3.0), positions)
    assert_equivalent(got, full, again.base_output)
    assert kcompile.verify(again, image, 6).ok
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert path.stat().st_size < 1.02 * weights  # shared by the graphs, stored once


def test_lowered_and_noted_as_before(tmp_path: Path, seed: int) -> None:
    inc = compiled()
    inc.save(tmp_path / "a")
    again = kcompile.load(tmp_path / "a")
    assert again.plan == inc.plan
    assert again.outputs.activations == inc.outputs.activations
    for part in GRAPHS:
        ours, theirs = getattr(inc, part), getattr(again, part)
        assert ours.code == theirs.code
        for one, other in zip(ours.graph.nodes, theirs.graph.nodes, strict=True):
            for key in ("rule", "read", "shape", "input_sizes"):
                assert one.meta.get(key) == other.meta.get(key)
    for part in ("front", "tail"):
        lowered = [
            [str(node.target) for node in getattr(module.executor(), part).graph.nodes] for module in (inc, again)
        ]
        assert lowered[0] == lowered[1]


def test_weights_are_shared_and_frozen(tmp_path: Path, seed: int) -> None:
    compiled().save(tmp_path / "a")
    inc = kcompile.load(tmp_path / "a")
    places = [{t.data_ptr() for t in [*part.parameters(), *part.buffers()] if t.numel()}
              for part in (inc.materializer, inc.model.graph_module, nn.ModuleList([inc.front, inc.tail]))]  # fmt: skip
    assert places[0] == places[1] == places[2] != set()
    assert not any(parameter.requires_grad for parameter in inc.parameters())
    images = noise((2, *SHAPE)).requires_grad_()
    (gradient,) = torch.autograd.grad(inc(images).square().sum(), images)
    assert gradient.abs().max() > 0


def test_buffers_stay_shared_after_a_cast_back(seed: int) -> None:
    """What `to` does to a buffer that several graphs share, it does once."""
    inc = compiled()
    inc.to("cpu")
    inc.materializer.to("cpu")
    names = [name for name, _ in inc.materializer.named_buffers()]
    fresh = inc._apply(lambda tensor: tensor.clone())
    shared = [name for name in names if hasattr(fresh.front, name)]
    assert shared
    for name in shared:
        assert getattr(fresh.front, name) is getattr(fresh.materializer, name)


def test_saving_again_and_copies_of_what_was_loaded(tmp_path: Path, seed: int) -> None:
    network = SAVED["named tuple"]
    model, image = network.made(), noise(network.shape, network.dtype)
    inc = incremental(model, network.shape, network.patch)
    inc.policy = "full"
    inc.save(tmp_path / "a")
    inc.policy = "incremental"
    loaded = kcompile.load(tmp_path / "a")
    assert loaded.policy == "full"
    loaded.policy = "incremental"
    loaded.save(tmp_path / "a")  # over the file that it came from
    want = (inc.materialize(image), inc.forward_patches(2.0, [[1, 2], [5, 6]]))
    for again in (kcompile.load(tmp_path / "a"), deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        got = (again.materialize(image), again.forward_patches(2.0, [[1, 2], [5, 6]]))
        assert_same(got, want)
        assert type(got[0]).__name__ == "Scores"
        assert got[0]._fields == Scores._fields
        assert_same(pickle.loads(pickle.dumps(got)), want)
        assert repr(got[0]).startswith("Scores(scores=")


def test_what_a_loaded_module_can_not(tmp_path: Path, seed: int) -> None:
    compiled().save(tmp_path / "a")
    inc = kcompile.load(tmp_path / "a")
    image = noise(SHAPE)
    want = inc.materialize(image)
    with refused(kcompile.StaleWeightsError, "loaded from a file", "no model", "kcompile.incrementalize"):
        inc.refresh()
    for cast in (inc.double, inc.half, lambda: inc.to(torch.bfloat16)):
        with refused(kcompile.InputError, "keeps its type, torch.float32", "compile it again"):
            cast()
    assert_same(inc.base_output, want)  # as it was
    assert_same(inc.float().to("cpu").materialize(image), want)
    with torch.no_grad():
        next(inc.model.parameters()).mul_(1.5)
    with pytest.raises(kcompile.StaleWeightsError):
        inc.materialize(image)


def test_changed_weights_are_not_saved(tmp_path: Path, seed: int) -> None:
    inc = compiled()
    with torch.no_grad():
        next(inc.model.parameters()).mul_(1.5)
    with refused(kcompile.StaleWeightsError, "inc.refresh()"):
        inc.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


class Several(nn.Module):
    """An image, a tensor with rows, one without, a number, and one by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, context: dict[str, Tensor], x: Tensor, power: int, *, scale: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.conv(x)) * scale[:, None, None] + context["shift"][:, :, None, None]
        return {"map": y**power, "scores": self.head(y.mean((2, 3)))}


def test_several_inputs(tmp_path: Path, seed: int) -> None:
    model = Several().eval()

    def call(rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ({"shift": noise((rows, 4))}, noise((rows, 3, 9, 11)), 2), {"scale": noise((4,))}

    args, kwargs = call(2)
    example = {"context": args[0], "x": args[1], "power": 2, **kwargs}
    with incremental_wherever_possible():
        inc = kcompile.incrementalize(model, patch_shape=(2, 3), example_inputs=example, patched_input="x")
    inc.save(tmp_path / "a")
    again = kcompile.load(tmp_path / "a")
    for rows in (3, 1):
        args, kwargs = call(rows)
        named = {"context": args[0], "x": args[1], "power": 2, **kwargs}
        torch.testing.assert_close(again(**named), inc(**named))
        assert_same(again.materialize(**named), inc.materialize(**named))
        assert_same(*(module.forward_patches(2.0, [[1, 2], [-1, 9]]) for module in (again, inc)))
    args, kwargs = call(2)
    other = {"context": args[0], "x": args[1], "power": 2, **kwargs}
    again(**other)  # writes into nothing that queries read
    assert_same(again.forward_patches(2.0, [[1, 2]]), inc.forward_patches(2.0, [[1, 2]]))
    for wrong in ({**other, "power": 3}, {**other, "more": 1}):
        with pytest.raises(kcompile.InputError):
            again(**wrong)
    again.save(tmp_path / "b")
    assert_same(kcompile.load(tmp_path / "b").materialize(**other), inc.materialize(**other))
    assert_same(deepcopy(again).materialize(**other), inc.base_output)


# ------------------------------------------------------------------ constants that graphs make at run time


class Grid(nn.Module):
    """Names a device and a type in its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        wave = torch.arange(y.shape[-1], device=x.device, dtype=x.dtype) + torch.zeros(x.shape[0], 4, 7, 9).to(y)
        return y * wave, torch.ones(3, dtype=y.dtype)


def test_the_plain_call_follows_moves_and_casts(tmp_path: Path, seed: int) -> None:
    inc = incremental(Grid().eval(), (3, 9, 11), (2, 2))
    inc.save(tmp_path / "a")
    model = kcompile.load(tmp_path / "a").model
    images = noise((2, 3, 9, 11))
    for one, other in zip(deepcopy(model).double()(images.double()), inc(images), strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one.float(), other)
    for one, other in zip(model.to("meta")(images.to("meta")), inc(images), strict=True):
        assert one.is_meta
        assert one.shape == other.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_moves_to_a_gpu(tmp_path: Path, seed: int) -> None:
    inc = incremental(Grid().eval(), (3, 9, 11), (2, 2))
    image = noise((3, 9, 11))
    inc.materialize(image)
    want = inc.forward_patches(2.0, [[1, 2], [-1, 3]])
    inc.save(tmp_path / "a")
    there = kcompile.load(tmp_path / "a", device="cuda")
    there.save(tmp_path / "b")
    for again in (there, kcompile.load(tmp_path / "b"), inc.cuda()):
        again.materialize(image.cuda())
        for one, other in zip(again.forward_patches(2.0, [[1, 2], [-1, 3]]), want, strict=True):
            assert one.is_cuda
            torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kcompile.load(tmp_path / "b", "cpu").materialize(image), inc.cpu().materialize(image))


# ------------------------------------------------------------------ what files can't hold
