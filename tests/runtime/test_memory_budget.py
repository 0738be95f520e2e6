"""Memory budgets: what base images and queries hold stays below, however small; what is too small is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kcompile
from kcompile.runtime.budget import Kinds
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.needs import query_needs
from tests.support.equivalence import incremental, noise
from tests.support.memory import peak_bytes
from tests.support.networks import DenseBlock, Gated, Residual, conv, conv_bn_relu, inception, pooled_head, ready, vgg

SHAPE, PATCH = (3, 64, 61), (9, 8)


def segmentation() -> nn.Module:
    up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear"), conv(8, 4, 1))
    return nn.Sequential(conv_bn_relu(3, 8), nn.MaxPool2d(2), Residual(8, 8), up)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: vgg(3, SHAPE[1:]),
    "residual": lambda: pooled_head(nn.Sequential(conv_bn_relu(3, 8), Residual(8, 8), Residual(8, 8)), 8),
    "inception": lambda: pooled_head(nn.Sequential(inception(3), conv(9, 8)), 8),
    "dense block": lambda: pooled_head(DenseBlock(3), 7),
    "early gate": lambda: pooled_head(nn.Sequential(conv(3, 8), Gated(8), conv(8, 8)), 8),
    "maps": segmentation,
}
CASES = [(name, torch.float32, "incremental") for name in NETWORKS]
CASES += [(name, torch.float32, "full") for name in ("residual", "early gate", "maps")]
CASES += [("vgg", torch.float64, "incremental"), ("maps", torch.float64, "full")]


def queries(count: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(-3, 58, (count, 2)), rng.integers(0, 2, count)


def needed(inc: IncrementalModule) -> int:
    """What the error says that it takes."""
    with pytest.raises(
        kcompile.MemoryBudgetError, match="memory_budget is 1 bytes; one base image and a query"
    ) as told:
        inc.memory_budget = 1
    (number,) = re.findall(r"takes ([\d,]+)", str(told.value))
    return int(number.replace(",", ""))


@pytest.mark.parametrize(("name", "dtype", "policy"), CASES)
def test_the_measured_peak_obeys(name: str, dtype: torch.dtype, policy: Any, seed: int) -> None:
    """From the least budget there is to one that allows all: the same results, and less memory than that."""
    inc = incremental(ready(NETWORKS[name](), SHAPE, dtype), SHAPE, PATCH)
    inc.policy = policy
    images, (where, which) = noise((2, *SHAPE), dtype), queries(150, seed)
    inc.materialize(images)
    want = inc.forward_patches(2.0, where, base_index=which)
    least = needed(inc)
    taken = []
    for images_given, budget in ((1, least), (1, 2 * least), (2, 3 * least), (2, 30 * least)):
        inc.memory_budget = budget
        inc.drop_base()
        made = peak_bytes(lambda n=images_given: inc.materialize(images[:n]))  # type: ignore[misc]
        assert inc._store is not None
        held, index = inc._store.held, np.minimum(which, images_given - 1)
        results = want.numel() * want.element_size()  # the caller's
        took = peak_bytes(lambda i=index: inc.forward_patches(2.0, where, base_index=i)) - results  # type: ignore[misc]
        print(f"{budget:,}: made {made:,}, held {held:,}, took {took:,}")
        assert held <= made <= budget
        assert held + took <= budget
        got = inc.forward_patches(2.0, where, base_index=index)
        same = torch.from_numpy(index == which)
        torch.testing.assert_close(got[same], want[same], rtol=1e-4, atol=1e-5)
        taken.append(took)
    assert taken[0] < taken[-1]
    limits = inc.executor().limits(inc._store, PATCH)  # type: ignore[arg-type]
    assert (limits.batch, limits.full) == (32, 16)
    with pytest.raises(kcompile.MemoryBudgetError, match="one base image and a query of it takes"):
        inc.memory_budget = least - 1


def test_without_a_budget_more_is_taken(seed: int) -> None:
    """So that the tests above can fail."""
    inc = incremental(ready(NETWORKS["vgg"](), SHAPE, torch.float32), SHAPE, PATCH)
    least = needed(inc)
    inc.materialize(noise(SHAPE))
    assert inc.memory_budget is None
    assert peak_bytes(lambda: inc.forward_patches(2.0, queries(150, seed)[0])) > least


def test_several_base_images_run_in_parts(seed: int) -> None:
    """As many at a time as fit; too many are refused, with the number that they would take."""
    inc = incremental(ready(segmentation(), SHAPE, torch.float32), SHAPE, PATCH)
    images = noise((5, *SHAPE))
    want = inc.materialize(images)
    parts: list[int] = []
    least = needed(inc)
    inc.memory_budget = least
    with pytest.raises(kcompile.MemoryBudgetError, match="5 base images and a query of them takes") as told:
        inc.materialize(images)
    inc.memory_budget = int(re.findall(r"takes ([\d,]+)", str(told.value))[0].replace(",", ""))
    inc.runners.materializer(None).graph_module.register_forward_pre_hook(lambda _, args: parts.append(len(args[1])))
    torch.testing.assert_close(inc.materialize(images), want)
    assert sum(parts) == 5
    assert len(parts) > 1
    for index in range(5):
        full = inc.model(images[index : index + 1])
        alone = inc.forward_patches(images[index, :, 3:7, 4:7], [[3, 4]], base_index=[index])
        torch.testing.assert_close(alone, full, rtol=1e-4, atol=1e-5)


def test_two_boxes(seed: int) -> None:
    """Patched bases and boxes around both fit too."""
    inc = incremental(ready(NETWORKS["residual"](), SHAPE, torch.float32), SHAPE, PATCH)
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 50, (6, 1, 2)).repeat(10, axis=0)
    where = np.concatenate([first, rng.integers(0, 50, (60, 1, 2))], axis=1)
    inc.materialize(image := noise(SHAPE))
    want = inc.forward_patches(2.0, where)
    for factor in (1, 3, 30):
        inc.memory_budget = factor * needed_of_an_image(inc)
        inc.materialize(image)
        assert inc._store is not None
        took = peak_bytes(lambda: inc.forward_patches(2.0, where))
        assert inc._store.held + took <= inc.memory_budget
        torch.testing.assert_close(inc.forward_patches(2.0, where), want, rtol=1e-4, atol=1e-5)


def needed_of_an_image(inc: IncrementalModule) -> int:
    """What a base image and a query of the image's size take, for the box around two boxes can be as large."""
    inc.memory_budget = 1 << 40
    memory = inc.runners.memory(None)
    assert memory is not None
    whole = query_needs(inc.executor(), memory.budget.kinds, SHAPE[1:]).least("incremental")
    return max(memory.needed(1), memory.images.row + whole) * 8 // 7 + 1


@pytest.mark.parametrize("value", [0, -5, True, 1.5, "64MB", float("nan"), (1,), torch.tensor(5)], ids=repr)
def test_bad_values(value: Any) -> None:
    told = "memory_budget is .*; allowed are an integer of at least 1 .bytes. and None"
    with pytest.raises(kcompile.InputError, match=told):
        kcompile.incrementalize(conv(3, 2).eval(), SHAPE, PATCH, memory_budget=value)
    with pytest.raises(kcompile.InputError, match=told):
        kcompile.occlusion(conv(3, 2).eval(), noise(SHAPE), PATCH, memory_budget=value)


def test_where_a_budget_is_given(tmp_path: Any, seed: int) -> None:
    model = ready(NETWORKS["vgg"](), SHAPE, torch.float32)
    with pytest.raises(kcompile.MemoryBudgetError, match="memory_budget is 1,000 bytes; one base image and a query of"):
        kcompile.incrementalize(model, SHAPE, PATCH, memory_budget=1000)
    with pytest.raises(kcompile.MemoryBudgetError, match="memory_budget is 1,000 bytes"):
        kcompile.occlusion(model, noise(SHAPE), PATCH, stride=16, memory_budget=1000)
    inc = kcompile.incrementalize(model, SHAPE, PATCH, memory_budget=np.int64(50 << 20))
    assert inc.memory_budget == 50 << 20
    with pytest.raises(kcompile.InputError, match="compiled already: set inc"):
        kcompile.occlusion(inc, noise(SHAPE), memory_budget=1 << 20)
    inc.save(tmp_path / "saved")
    loaded = kcompile.load(tmp_path / "saved")
    assert loaded.memory_budget == 50 << 20
    for one in (inc, loaded):
        with pytest.raises(kcompile.MemoryBudgetError):
            one.memory_budget = 1000
        assert one.memory_budget == 50 << 20  # as before
    inc.refresh()
    assert inc.memory_budget == 50 << 20
    inc.memory_budget = None
    inc.materialize(noise(SHAPE))


def test_fills_keep_it_too(seed: int) -> None:
    """Patches that differ by position are made for a part of them at a time."""
    inc = incremental(ready(NETWORKS["vgg"](), SHAPE, torch.float32), SHAPE, PATCH)
    image = noise(SHAPE)
    want = kcompile.occlusion(inc, image, stride=1, value="blur")
    inc.memory_budget = budget = 2 * needed(inc)
    results: list[Any] = []
    assert peak_bytes(lambda: results.append(kcompile.occlusion(inc, image, stride=1, value="blur"))) <= budget
    np.testing.assert_allclose(results[0].all_scores, want.all_scores, rtol=1e-4, atol=1e-5)


def test_under_autocast(seed: int) -> None:
    """The emitted graphs run then, and what they take is worked out for them."""
    inc = incremental(ready(NETWORKS["residual"](), SHAPE, torch.float32), SHAPE, PATCH)
    image, (where, _) = noise(SHAPE), queries(100, seed)
    with torch.autocast("cpu", torch.bfloat16):
        inc.materialize(image)
        want = inc.forward_patches(2.0, where)
        inc.memory_budget = 3 * needed(inc)
        made = peak_bytes(lambda: inc.materialize(image))
        assert inc._store is not None
        took = peak_bytes(lambda: inc.forward_patches(2.0, where))
        torch.testing.assert_close(inc.forward_patches(2.0, where), want, rtol=2e-2, atol=2e-2)
    assert max(made, inc._store.held + took) <= inc.memory_budget


def test_inputs_beside_the_image(seed: int) -> None:
    """Their rows are kept with the base."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv(3, 4)

        def forward(self, image: Tensor, facts: Tensor) -> Tensor:
            return F.relu(self.inner(image)).mean((2, 3)) + facts[:, :4]

    facts = noise((1, 5000))
    inc = kcompile.incrementalize(Two().eval(), patch_shape=PATCH, example_inputs=(noise((1, *SHAPE)), facts))
    inc.memory_budget = needed(inc)
    made = peak_bytes(lambda: inc.materialize(noise((1, *SHAPE)), facts))
    assert inc._store is not None
    assert inc._store.held > facts.numel() * 4
    assert made <= inc.memory_budget
    inc.forward_patches(2.0, [[3, 4]])


def test_many_maps_do_not_grow_memory(seed: int) -> None:
    inc = incremental(ready(NETWORKS["residual"](), SHAPE, torch.float32), SHAPE, PATCH)

    def maps(count: int) -> None:
        for _ in range(count):
            kcompile.occlusion(inc, noise(SHAPE), stride=8)

    maps(2)
    peak_bytes(lambda: maps(2))  # what is freed of the maps before is known to the measurement from here on
    assert peak_bytes(lambda: maps(8)) <= peak_bytes(lambda: maps(2))


def test_nothing_is_run_to_work_it_out(seed: int) -> None:
    """Neither the model nor memory: metering is of tensors without data."""
    inc = incremental(ready(NETWORKS["vgg"](), SHAPE, torch.float32), SHAPE, PATCH)
    executor, like = inc.executor(), torch.empty(1, *SHAPE)
    needs = inc.runners.materializer(None).needs((like,))
    with warnings.catch_warnings():
        taken = peak_bytes(lambda: query_needs(executor, Kinds((like,), needs.dtypes), PATCH))
    assert taken < 20_000  # indices of the windows


RESIDENT = """
import sys, torch, kcompile
from benchmarks.cpu.memory import peak
from benchmarks.maps import positions_of
from benchmarks.networks import network
budget = int(sys.argv[1])
torch.set_num_threads(2)
model, size = network("resnet18")
inc = kcompile.incrementalize(model, (1, 3, size, size), 16, memory_budget=budget)
inc.policy = "incremental"
image, positions = torch.randn(3, size, size), positions_of(size, 16, 8)
def work():
    inc.materialize(image)
    for _ in inc.stream_patches(0.0, positions):
        pass
work()
inc.drop_base()
print(peak(work)["above"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("megabytes", [64, 128, 256])
def test_resident_memory_of_resnet18(megabytes: int) -> None:
    """A second map in a process of its own, whose oneDNN kernels are compiled.

    By default glibc keeps freed blocks of up to 32 MB, in pieces: two to four times of what is held is resident then.
    """
    run = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(megabytes << 20)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    above = int(run.stdout.splitlines()[-1])
    print(f"{above:,} bytes")
    assert (8 << 20) < above <= (megabytes << 20)
