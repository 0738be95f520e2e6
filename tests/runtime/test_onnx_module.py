"""Exported models in ONNX Runtime: calls as those of the torch module, bad files, no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import kcompile
from kcompile.core.errors import InputError, NotMaterializedError, PositionError, SaveError
from kcompile.core.onnx_files import HEATMAP, INCREMENTAL, MANIFEST, MATERIALIZE, WEIGHTS
from kcompile.runtime.onnx_session import CUDA
from tests.support.equivalence import PATCH, SHAPE, compiled, incremental, noise, refused
from tests.support.exported import CPU, anywhere, assert_alike, exported
from tests.support.networks import conv, pooled_head, ready

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[kcompile.IncrementalModule, kcompile.OnnxModule]:
    """A small network in both runtimes, with two base images."""
    inc = compiled()
    inc.policy = "incremental"
    model = exported(inc, tmp_path_factory.mktemp("export"), batch=8, preprocessing={"mean": [0.5]})
    images = noise((2, *SHAPE))
    assert_alike(model.materialize(images), inc.materialize(images))
    return inc, model


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_any_number_of_queries(pair: Any, count: int, seed: int) -> None:
    inc, model = pair
    patches, positions = noise((count, 3, *PATCH)), anywhere(SHAPE, PATCH, count)
    which = torch.randint(2, (count,))
    got = model.forward_patches(patches, positions, base_index=which)
    want = inc.forward_patches(patches, positions, base_index=which)
    assert_alike(got, want, inc.base_output[:1] if count > 1 else None)


@pytest.mark.parametrize(
    ("patches", "options"),
    [
        (0.5, {}),
        ([1.0, -2.0, 3.0], {}),
        (noise((3, 2, 5)), {}),
        (noise((6, 3, *PATCH)), {"mask": torch.rand(PATCH)}),
        (noise((6, 3, *PATCH)), {"mask": torch.rand(6, 3, *PATCH) > 0.5}),
        (2.0, {"mask": torch.rand(6, 4, 3)}),
        (noise((3, *PATCH)), {"channels": [1]}),
        (noise((3, *PATCH)), {"channels": -1, "mask": torch.rand(PATCH)}),
    ],
    ids=["number", "colour", "small", "mask", "each its mask", "colour, masks", "channel", "last channel, mask"],
)
def test_patches_masks_and_channels(pair: Any, patches: Any, options: Any) -> None:
    inc, model = pair
    positions = np.random.default_rng().integers(-1, 28, (6, 2))
    got, want = (m.forward_patches(patches, positions, **options) for m in (model, inc))
    assert_alike(got, want, inc.base_output[:1])


@pytest.mark.parametrize("mask", [None, torch.rand(6, 2, 3, 2)], ids=["opaque", "masked"])
@pytest.mark.parametrize("apart", [1, 12], ids=["one patch holds both", "apart"])
def test_two_boxes(pair: Any, apart: int, mask: Any) -> None:
    inc, model = pair
    first = np.random.default_rng().integers(0, 15, (6, 1, 2))
    positions = np.concatenate([first, first + apart], axis=1)
    patches = noise((6, 2, 3, 3, 2))
    which = torch.randint(2, (6,))
    got, want = (m.forward_patches(patches, positions, mask=mask, base_index=which) for m in (model, inc))
    assert_alike(got, want, inc.base_output[:1])


@pytest.mark.parametrize("boxes", [1, 2])
@pytest.mark.parametrize("way", ["full", "auto"])
def test_full_inference_by_the_same_export(pair: Any, way: str, boxes: int, monkeypatch: Any, seed: int) -> None:
    """ "auto" runs so small a map in full."""
    _, model = pair
    runs = []
    full = type(model.materializer).full
    monkeypatch.setattr(type(model.materializer), "full", lambda *args: runs.append(1) or full(*args))
    positions = anywhere(SHAPE, (3, 2), 7)
    positions = positions if boxes == 1 else np.stack([positions, positions[::-1]], axis=1)
    patches = noise((7, *([2] if boxes == 2 else []), 3, 3, 2))
    options = {"base_index": torch.randint(2, (7,)), "mask": torch.rand(3, 2)}
    want = model.forward_patches(patches, positions, **options)
    assert not runs
    monkeypatch.setattr(model, "policy", way)
    got = model.forward_patches(patches, positions, **options)
    assert len(runs) == 7
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("faster", ["incremental", "full"])
def test_close_calls_are_timed(pair: Any, faster: str, monkeypatch: Any, seed: int) -> None:
    """Three batches run both ways; the faster way does the rest, and later calls know it."""
    _, model = pair
    choice, full, rows = model.runs.choice, [], 200
    monkeypatch.setattr(model, "policy", "auto")
    monkeypatch.setattr(choice, "rates", {})
    monkeypatch.setattr(choice, "queries", lambda regions: np.full(len(regions[0].cells), choice.full(1)))
    monkeypatch.setattr(choice, "overhead", 0.0)
    run, clock = type(model.runs)._full, [0.0]
    monkeypatch.setattr(type(model.runs), "_full", lambda *args: full.append(len(args[3])) or run(*args))

    def ticking() -> float:
        clock[0] += 100.0 if (len(full) == 2) == (faster == "incremental") else 0.01  # the other way takes long
        return clock[0]

    monkeypatch.setattr("kcompile.runtime.onnx_runs.time.perf_counter", ticking)
    patches, positions = noise((rows, 3, *PATCH)), anywhere(SHAPE, PATCH, rows)
    got = model.forward_patches(patches, positions)
    assert full[:2] == [1, 4]
    assert set(choice.rates) == {"incremental", "full"}
    assert sum(full) > 5 if faster == "full" else sum(full) == 5
    monkeypatch.setattr(model, "policy", "incremental")
    want = model.forward_patches(patches, positions)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_unknown_policy(pair: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(pair[1], "policy", "fast")
    with refused(InputError, "'fast'", "auto"):
        pair[1].forward_patches(0.0, [[0, 0]])


def test_full_inference_of_several_outputs(tmp_path: Path, seed: int) -> None:
    inc = incremental(ready(Named(), SHAPE, torch.float32), SHAPE, PATCH)
    model, image, positions = exported(inc, tmp_path), noise(SHAPE), anywhere(SHAPE, PATCH, 4)
    model.materialize(image)
    want = [model.forward_patches(0.7, positions, output=kind) for kind in ("full", "region")]
    model.policy = "full"
    got = [model.forward_patches(0.7, positions, output=kind) for kind in ("full", "region")]
    assert np.abs(got[0]["map"] - want[0]["map"]).max() <= 1e-5
    assert np.abs(got[0]["more"][0] - want[0]["more"][0]).max() <= 1e-5
    assert np.abs(got[1]["map"].values - want[1]["map"].values).max() <= 1e-5
    assert np.array_equal(got[1]["map"].origins, want[1]["map"].origins)


def test_says_what_it_is(pair: Any) -> None:
    _, model = pair
    assert model.provider == CPU[0]
    assert model.preprocessing == {"mean": [0.5]}
    assert model.plan.patch_shape == PATCH


class Named(nn.Module):
    """Returns a dict with a map, a list, a number and None."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.head = conv(3, 4), pooled_head(conv(3, 4), 4)

    def forward(self, x: Tensor) -> Any:
        return {"map": self.map(x), "more": [self.head(x), 3], "none": None}


def test_structured_outputs(tmp_path: Path, seed: int) -> None:
    inc = incremental(ready(Named(), SHAPE, torch.float32), SHAPE, PATCH)
    model = exported(inc, tmp_path)
    image, positions = noise(SHAPE), anywhere(SHAPE, PATCH, 4)
    before, got = inc.materialize(image), model.materialize(image)
    assert_alike(got, before)
    got, want = model.forward_patches(0.7, positions), inc.forward_patches(0.7, positions)
    assert list(got) == list(want)
    assert_alike(got, want)


@pytest.mark.parametrize("count", [0, 5])
def test_maps_as_regions(count: int, tmp_path: Path, seed: int) -> None:
    inc = incremental(ready(Named(), SHAPE, torch.float32), SHAPE, PATCH)
    model = exported(inc, tmp_path)
    image, positions = noise(SHAPE), anywhere(SHAPE, PATCH, count)
    before, own = inc.materialize(image), model.materialize(image)
    got, want = (m.forward_patches(0.7, positions, output="region") for m in (model, inc))
    assert_alike(got["more"], want["more"])
    assert_alike(got["map"].values, want["map"].values)
    assert np.array_equal(got["map"].origins, want["map"].origins.numpy())
    assert got["map"].axes == want["map"].axes
    assert_alike(got["map"].paste(own["map"]), want["map"].paste(before["map"]))
    with refused(InputError, "'all'"):
        model.forward_patches(0.7, positions, output="all")


class WithFacts(nn.Module):
    """An image and a row of facts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = conv(3, 4, stride=2), nn.Linear(2, 4)

    def forward(self, x: Tensor, facts: Tensor) -> Tensor:
        return torch.relu(self.conv(x) * self.mix(facts)[:, :, None, None]).flatten(1)[:, ::7]


def test_other_inputs_with_rows(tmp_path: Path, seed: int) -> None:
    inc = kcompile.incrementalize(
        WithFacts().eval(), example_inputs=(noise((2, *SHAPE)), noise((2, 2))), patch_shape=PATCH
    )
    model = exported(inc, tmp_path)
    images, facts = noise((3, *SHAPE)), noise((3, 2))
    assert_alike(model.materialize(images, facts), inc.materialize(images, facts))
    positions, which = anywhere(SHAPE, PATCH, 5), [0, 1, 2, 1, 0]
    got, want = (m.forward_patches(1.5, positions, base_index=np.array(which)) for m in (model, inc))
    assert_alike(got, want)
    at = positions[:2]
    scores = model.run_heatmap((images[1], facts[1]), np.full((3, *PATCH), 1.5), positions=at)["scores"]
    want = inc.forward_patches(1.5, at, base_index=[1, 1]).softmax(1).numpy()
    assert np.abs(scores - want).max() <= 1e-5
    with refused(InputError, "1 inputs are given", "takes 2"):
        model.materialize(images)


@pytest.mark.parametrize(
    ("error", "call", "parts"),
    [
        (InputError, lambda m: m.materialize(noise((3, 30, 36))), ["(3, 30, 36)", "(3, 30, 37)"]),
        (InputError, lambda m: m.materialize(np.zeros(SHAPE, np.uint8)), ["uint8", "float32"]),
        (InputError, lambda m: m.forward_patches(noise((3, 7, 5)), [[0, 0]]), ["7x5", "6x5"]),
        (InputError, lambda m: m.forward_patches([1.0, 2.0], [[0, 0]]), ["3 values, got 2"]),
        (InputError, lambda m: m.forward_patches(noise((2, 3, *PATCH)), [[0, 0]]), ["2 patches for 1"]),
        (InputError, lambda m: m.forward_patches(0.0, [[0, 0]], mask=[[2.0]]), ["outside 0 … 1"]),
        (InputError, lambda m: m.forward_patches(0.0, [[0, 0]], channels=[3]), ["0 … 2"]),
        (InputError, lambda m: m.forward_patches(0.0, [[0, 0]], base_index=[5]), ["0…1"]),
        (PositionError, lambda m: m.forward_patches(0.0, [[0.5, 0]]), ["float64"]),
        (PositionError, lambda m: m.forward_patches(0.0, [[0, 0], [30, 0]]), ["(30, 0)", "index 1"]),
    ],
)  # fmt: skip
def test_bad_calls(pair: Any, error: Any, call: Any, parts: list[str]) -> None:
    with refused(error, *parts):
        call(pair[1])


@pytest.fixture
def folder(pair: Any, tmp_path: Path) -> Path:
    """A copy of the export, to spoil."""
    return Path(shutil.copytree(pair[1].sessions._manifest.directory, tmp_path / "copy"))


def test_query_before_materialize(folder: Path) -> None:
    with refused(NotMaterializedError, "materialize(image)"):
        kcompile.load_onnx(folder, CPU).forward_patches(0.0, [[0, 0]])


@pytest.mark.parametrize("name", [MATERIALIZE, INCREMENTAL, WEIGHTS, HEATMAP])
def test_missing_and_short_files(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    with refused(SaveError, name, "bytes long"):
        kcompile.load_onnx(folder, CPU)
    (folder / name).unlink()
    with refused(SaveError, name, "missing"):
        kcompile.load_onnx(folder, CPU)


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    with refused(SaveError, "no folder"):
        kcompile.load_onnx(tmp_path / "nowhere")
    with refused(SaveError, "no complete export", MANIFEST):
        kcompile.load_onnx(tmp_path)
    (folder / MANIFEST).write_text("{")
    with refused(SaveError, "damaged"):
        kcompile.load_onnx(folder)


def test_newer_format(folder: Path) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**data, "kcompile": 99}))
    with refused(SaveError, "99", "install a newer one"):
        kcompile.load_onnx(folder)


def test_files_of_two_exports(folder: Path) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**data, "id": "another"}))
    with refused(SaveError, "two exports"):
        kcompile.load_onnx(folder, CPU)


def test_spoilt_model(folder: Path) -> None:
    size = (folder / INCREMENTAL).stat().st_size
    (folder / INCREMENTAL).write_bytes(b"x" * size)
    with refused(SaveError, "can't open", INCREMENTAL):
        kcompile.load_onnx(folder, CPU)


def test_type_that_the_runtime_lacks(tmp_path: Path) -> None:
    """ONNX has convolutions in float64, ONNX Runtime 1.31 on the CPU has not."""
    kcompile.export_onnx(compiled(torch.float64), tmp_path)
    with refused(SaveError, "can't open", "lacks ops for float64", "float32 runs"):
        kcompile.load_onnx(tmp_path, CPU)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 2e-2), (torch.bfloat16, 5e-2)], ids=str)
def test_half_precision(dtype: torch.dtype, share: float, tmp_path: Path, seed: int) -> None:
    inc, image, positions = compiled(dtype), noise(SHAPE, dtype), anywhere(SHAPE, PATCH, 6)
    found, before = exported(inc, tmp_path), inc.materialize(image)
    got = [found.materialize(image.float()), found.forward_patches(0.5, positions)]
    for mine, want in zip(got, (before, inc.forward_patches(0.5, positions)), strict=True):
        assert mine.dtype == (np.float16 if dtype == torch.float16 else np.float32)
        assert np.abs(mine - want.float().numpy()).max() <= share * float(want.abs().max())


def test_provider_that_is_not_there(folder: Path) -> None:
    with refused(InputError, "NoSuchProvider", "CPUExecutionProvider"):
        kcompile.load_onnx(folder, ["NoSuchProvider"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA runs here")
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="this build has no CUDA")
def test_provider_that_does_not_run(folder: Path, capfd: Any) -> None:
    """ONNX Runtime itself falls back to the CPU, with lines on stderr alone."""
    with refused(InputError, CUDA, "does not run here", CPU[0]):
        kcompile.load_onnx(folder, [CUDA])


WITHOUT_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnx"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
import numpy as np, kcompile
facts = np.load(sys.argv[3])
model = kcompile.load_onnx(sys.argv[2], ["CPUExecutionProvider"])
before = model.materialize(facts["image"])
got = model.forward_patches(facts["patches"], facts["positions"])
for value in (0.5, "mean", "patch-mean", "noise", kcompile.Blur(2.0), kcompile.Noise(3)):
    heat, other = model.occlusion([facts["image"], facts["image"] * 2], stride=5, value=value, target=None)
    assert heat.complete and heat.scores.shape == (5, 7), heat.scores.shape
for mine, want in ((before, facts["before"]), (got, facts["got"])):
    assert np.abs(mine - want).max() <= 1e-5 * np.abs(want).max()
assert not any(name.split(".")[0] in ("torch", "torchvision", "onnx") for name in sys.modules)
try:
    import torch
except ImportError:
    print("no torch,", end=" ")
print("fine")
"""


def test_runs_where_torch_is_not_installed(pair: Any, tmp_path: Path, seed: int) -> None:
    inc, model = pair
    image, patches, positions = noise(SHAPE), noise((5, 3, *PATCH)), anywhere(SHAPE, PATCH, 5)
    inc = compiled_again(inc)
    before = inc.materialize(image)
    np.savez(
        tmp_path / "facts.npz", image=image.numpy(), patches=patches.numpy(), positions=positions,
        before=before.numpy(), got=inc.forward_patches(patches, positions).numpy(),
    )  # fmt: skip
    command = [sys.executable, "-c", WITHOUT_TORCH, ROOT, model.sessions._manifest.directory, tmp_path / "facts.npz"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no torch, fine\n"


def compiled_again(inc: kcompile.IncrementalModule) -> kcompile.IncrementalModule:
    """The same weights, so that the other tests' bases stay."""
    again = incremental(inc.model, SHAPE, PATCH)
    again.policy = "incremental"
    return again
