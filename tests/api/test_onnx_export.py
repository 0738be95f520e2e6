"""`export_onnx` and `load_onnx`: files, metadata, the whole experiment in one model, heat maps, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import inliner
from torch import nn

import kcompile
from kcompile.core.errors import InputError, OnnxExportError, SaveError, StaleWeightsError
from kcompile.core.onnx_files import HEATMAP, INCREMENTAL, MANIFEST, MATERIALIZE, WEIGHTS
from tests.support.equivalence import PATCH, SHAPE, compiled, incremental, noise, refused
from tests.support.exported import CPU, anywhere, exported
from tests.support.networks import conv, pooled_head, ready, vgg

NOWHERE, NO_GRID = np.zeros((0, 2), np.int64), np.zeros(2, np.int64)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[kcompile.IncrementalModule, Path]:
    """A small network and its export."""
    inc, folder = compiled(), tmp_path_factory.mktemp("export")
    inc.policy = "incremental"
    exported(inc, folder, batch=8, preprocessing="divide by 255")
    return inc, folder


def run(path: Path, **given: Any) -> dict[str, np.ndarray]:
    """A model, without anything of ours."""
    session = onnxruntime.InferenceSession(str(path), providers=CPU)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("stride", [4, (3, 7)])
def test_heatmap_model_is_the_experiment(pair: Any, stride: Any, seed: int) -> None:
    inc, folder = pair
    image, patch = noise(SHAPE), noise((3, *PATCH))
    heat = kcompile.occlusion(inc, image, stride=stride, value=patch)
    steps = np.broadcast_to(stride, (2,)).astype(np.int64)
    given = {"image": image[None].numpy(), "patch": patch.numpy(), "stride": steps, "positions": NOWHERE}
    found = run(folder / HEATMAP, **given)
    assert np.array_equal(found["places"], heat.positions.reshape(-1, 2))
    assert np.abs(found["scores"].reshape(heat.all_scores.shape) - heat.all_scores).max() <= 1e-5
    assert np.abs(found["base_score"] - heat.base_scores).max() <= 1e-5
    assert np.abs(found["scores"] - found["base_score"]).max() >= 1e-3, "void: nothing reacts"


@pytest.mark.parametrize("count", [0, 1, 8, 19])
def test_heatmap_model_at_positions(pair: Any, count: int, seed: int) -> None:
    inc, folder = pair
    image, positions = noise(SHAPE), np.random.default_rng().integers(-1, 28, (count, 2))
    inc.materialize(image)
    want = inc.forward_patches(0.5, positions).softmax(1).numpy()
    patch = np.full((3, *PATCH), 0.5, np.float32)
    found = run(folder / HEATMAP, image=image[None].numpy(), patch=patch, positions=positions, stride=NO_GRID)
    assert found["scores"].shape == (count, 5)
    assert np.array_equal(found["places"], positions)
    assert np.abs(found["scores"] - want).max(initial=0) <= 1e-5


def test_patch_wholly_outside_leaves_the_base(pair: Any) -> None:
    _, folder = pair
    image = noise(SHAPE)
    patch, far = np.zeros((3, *PATCH), np.float32), np.array([[-6, 0], [100, -(10**9)]])
    found = run(folder / HEATMAP, image=image[None].numpy(), patch=patch, positions=far, stride=NO_GRID)
    assert np.abs(found["scores"] - found["base_score"]).max() <= 1e-6


FILLS = [0.0, [1.0, 2.0, 3.0], "mean", "patch-mean", "blur", "noise", kcompile.Blur((1.0, 3.0)), kcompile.Noise(7),
         kcompile.Pixels(0.5, lambda x: x * 3 - 1), "patch", "image"]  # fmt: skip


@pytest.mark.parametrize("value", FILLS, ids=lambda value: type(value).__name__ + str(value)[:12])
@pytest.mark.parametrize("score", ["probability", "logit"])
def test_occlusion_is_the_torch_modules(pair: Any, value: Any, score: str, seed: int) -> None:
    inc, folder = pair
    image = noise(SHAPE)
    shows = {"patch": noise((3, *PATCH)), "image": noise(SHAPE)}.get(value, value) if isinstance(value, str) else value
    options = {"stride": 5, "value": shows, "roi": (2, 3, 28, 37), "score": score}
    want, got = kcompile.occlusion(inc, image, **options), model(folder).occlusion(image, **options)
    assert got.target == want.target
    assert np.array_equal(got.positions, want.positions)
    assert np.abs(got.all_scores - want.all_scores).max() <= 1e-5 * max(1, np.abs(want.all_scores).max())
    assert np.abs(got.base_scores - want.base_scores).max() <= 1e-5 * max(1, np.abs(want.all_scores).max())


def model(folder: Path) -> kcompile.OnnxModule:
    found = kcompile.load_onnx(folder, CPU, threads=1)
    found.policy = "incremental"
    return found


def test_several_images_and_targets(pair: Any, seed: int) -> None:
    inc, folder = pair
    images = noise((2, *SHAPE))
    for given in (images, list(images), [image[None] for image in images]):
        want, got = kcompile.occlusion(inc, given, stride=9), model(folder).occlusion(given, stride=9)
        assert [heat.target for heat in got] == [heat.target for heat in want]
        for one, other in zip(got, want, strict=True):
            assert np.abs(one.all_scores - other.all_scores).max() <= 1e-5
    assert np.abs(got[0].all_scores - got[1].all_scores).max() > 1e-4, "void: one map twice"
    both = model(folder).occlusion(images[0], stride=9, target=[3, 1])
    assert [heat.target for heat in both] == [3, 1]
    ((one,), _) = model(folder).occlusion(images, stride=9, target=[2])
    assert one.target == 2
    calls: list[int] = []

    def until_the_second(progress: Any) -> bool:
        calls.append(progress.image)
        return progress.image == 0

    maps = model(folder).occlusion(images, stride=2, callback=until_the_second)
    assert [heat.complete for heat in maps] == [True, False]
    assert calls[-1] == 1


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ([], ["empty"]),
        ([noise((2, *SHAPE))], ["batch of 2"]),
        ([noise(SHAPE), noise((3, 30, 36))], ["(3, 30, 36)"]),
    ],
)
def test_lists_that_are_refused(pair: Any, image: Any, parts: list[str]) -> None:
    with refused(InputError, *parts):
        model(pair[1]).occlusion(image, stride=9)


def test_own_score_and_callback(pair: Any) -> None:
    _, folder = pair
    heat = model(folder).occlusion(noise(SHAPE), stride=9, score=lambda out: out[:, 1] - out[:, 0])
    assert heat.all_scores.shape[-1] == 1
    stopped = model(folder).occlusion(noise(SHAPE), stride=2, callback=lambda _: False)
    assert not stopped.complete
    assert not np.isnan(stopped.all_scores).all()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"value": "grain"}, ["'grain'", "patch-mean"]),
        ({"value": kcompile.Blur(-1.0)}, ["sigma is -1.0"]),
        ({"value": object()}, ["object", "arrays"]),
        ({"score": lambda out: out.sum()}, ["shape ()", "[N]"]),
        ({"target": []}, ["[]", "0 … 4"]),
        ({"value": [1.0, 2.0]}, ["(2,)", "[3]"]),
        ({"target": 9}, ["9", "0 … 4"]),
        ({"score": "odds"}, ["'odds'"]),
        ({"patch_shape": 7}, ["(7, 7)"]),
        ({"output": "head"}, ["'head'"]),
    ],
)
def test_occlusion_refuses(pair: Any, options: Any, parts: list[str]) -> None:
    with refused(InputError, *parts):
        model(pair[1]).occlusion(noise(SHAPE), stride=9, **options)


@pytest.mark.parametrize("name", [MATERIALIZE, INCREMENTAL, HEATMAP])
def test_metadata_and_standard_ops_alone(pair: Any, name: str) -> None:
    proto = onnx.load(pair[1] / name, load_external_data=False)
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(notes["kcompile_patch_shape"]) == list(PATCH)
    assert json.loads(notes["kcompile_input_shape"]) == list(SHAPE)
    assert notes["kcompile_preprocessing"] == "divide by 255"
    assert notes["kcompile_version"] == kcompile.__version__
    called = {node.op_type for node in every_node(proto.graph) if node.domain == "kcompile"}
    assert called <= {function.name for function in proto.functions}
    assert called or name == MATERIALIZE
    inlined = inliner.inline_local_functions(proto)
    assert not {node.domain for node in every_node(inlined.graph)} - {"", "ai.onnx"}


def every_node(graph: Any) -> Any:
    """Nodes of a graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from every_node(attribute.g)


def test_weights_are_stored_once(tmp_path: Path) -> None:
    inc = incremental(ready(vgg(3, (16, 20)), (3, 16, 20), torch.float32), (3, 16, 20), (4, 4))
    exported(inc, tmp_path)
    weights = sum(p.numel() * p.element_size() for p in inc.model.parameters() if p.numel() * p.element_size() > 1024)
    assert weights <= (tmp_path / WEIGHTS).stat().st_size <= 1.5 * weights + 65536
    inside = onnx.load(tmp_path / HEATMAP, load_external_data=False)
    (loop,) = [node for node in inside.graph.node if node.op_type == "Loop"]
    body = loop.attribute[0].g

    def places(graph: Any) -> set[str]:
        entries = [e for tensor in graph.initializer for e in tensor.external_data]
        return {entry.value for entry in entries if entry.key == "offset"}

    assert places(body), "the loop's body holds its weights"
    assert places(body) <= places(inside.graph) | places(body)
    assert places(body) & places(inside.graph)


def test_embedded_weights_need_no_file(pair: Any, tmp_path: Path, seed: int) -> None:
    inc, folder = pair
    found = exported(inc, tmp_path, embed=True)
    assert (tmp_path / WEIGHTS).stat().st_size == 0
    image = noise(SHAPE)
    want, got = kcompile.occlusion(inc, image, stride=7), found.occlusion(image, stride=7)
    assert np.abs(got.all_scores - want.all_scores).max() <= 1e-5
    alone = shutil.copy(tmp_path / HEATMAP, tmp_path / "alone.onnx")
    given = {"image": image[None].numpy(), "patch": noise((3, *PATCH)).numpy(), "positions": NOWHERE}
    given["stride"] = np.array([9, 9])
    mine, theirs = (run(Path(path), **given)["scores"] for path in (alone, folder / HEATMAP))
    assert np.abs(mine - theirs).max() <= 1e-6


@pytest.mark.parametrize("opset", [20, 23])
def test_other_opsets(pair: Any, opset: int, tmp_path: Path, seed: int) -> None:
    inc, _ = pair
    newer = exported(inc, tmp_path, opset=opset)
    image = noise(SHAPE)
    want, got = kcompile.occlusion(inc, image, stride=7), newer.occlusion(image, stride=7)
    assert np.abs(got.all_scores - want.all_scores).max() <= 1e-5
    assert onnx.load(tmp_path / INCREMENTAL, load_external_data=False).opset_import[0].version == opset


def test_models_without_scores_have_no_heatmap(tmp_path: Path) -> None:
    inc = incremental(ready(nn.Sequential(conv(3, 4), nn.ReLU()), SHAPE, torch.float32), SHAPE, PATCH)
    found = exported(inc, tmp_path)
    assert not (tmp_path / HEATMAP).exists()
    with refused(InputError, HEATMAP, "4 dimensions"):
        found.run_heatmap(noise(SHAPE), noise((3, *PATCH)), stride=4)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"stride": 0}, ["stride", "0"]),
        ({"stride": -4}, ["stride", "-4"]),
        ({"stride": 4.5}, ["stride", "4.5"]),
        ({"stride": float("nan")}, ["stride", "nan"]),
        ({"stride": (4, 4, 4)}, ["stride", "(4, 4, 4)"]),
        ({"positions": [[float("nan"), 0.0]]}, ["float64"]),
        ({"positions": np.array([[0, 0, 0]])}, ["(1, 3)"]),
        ({"positions": np.zeros((1, 2, 2), np.int64), "patch": np.float32(0.5)}, ["two boxes", "[N, 2]"]),
        ({"positions": [[2**62, 0]]}, ["index 0"]),
        ({"positions": [[0, 0]], "patch": np.zeros((1, 3, *PATCH), np.float32)}, ["(1, 3, 6, 5)", "one patch"]),
        ({"positions": [[0, 0]], "image": noise((2, *SHAPE))}, ["batch of 2", "one image"]),
    ],
)  # fmt: skip
def test_bad_experiments_are_named(pair: Any, given: dict[str, Any], parts: list[str]) -> None:
    usual = {"image": noise(SHAPE), "patch": np.zeros((3, *PATCH), np.float32)} | given
    with refused(InputError, *parts):
        kcompile.load_onnx(pair[1], CPU).run_heatmap(usual.pop("image"), usual.pop("patch"), **usual)


def test_no_positions_at_all(pair: Any) -> None:
    found = kcompile.load_onnx(pair[1], CPU).run_heatmap(noise(SHAPE), np.zeros((3, *PATCH), np.float32))
    assert found["scores"].shape == (0, len(found["base_score"]))
    assert found["places"].shape == (0, 2)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid(), None], ids=str)
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("score", ["probability", "logit"])
def test_final_activations_are_not_applied_twice(
    last: Any, classes: int, score: Any, tmp_path: Path, seed: int
) -> None:
    head = pooled_head(conv(3, 4), 4, classes)
    network = nn.Sequential(head, last) if last is not None else head
    inc = incremental(ready(network, SHAPE, torch.float32), SHAPE, PATCH)
    found, image = exported(inc, tmp_path, score=score), noise(SHAPE)
    want = kcompile.occlusion(inc, image, stride=9, score=score)
    one = found.run_heatmap(image, np.zeros((3, *PATCH), np.float32), stride=9)
    two = found.occlusion(image, stride=9, score=score)
    for got in (one["scores"].reshape(want.all_scores.shape), two.all_scores):
        assert np.abs(got - want.all_scores).max() <= 1e-5 * max(1, np.abs(want.all_scores).max())


class Two(nn.Module):
    """Returns a dict of logits and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(3, 4), pooled_head(conv(3, 4), 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"map": self.conv(x), "logits": self.head(x)}


def test_chosen_output(tmp_path: Path, seed: int) -> None:
    inc = incremental(ready(Two(), SHAPE, torch.float32), SHAPE, PATCH)
    found, image = exported(inc, tmp_path, output="logits"), noise(SHAPE)
    want = kcompile.occlusion(inc, image, stride=9, output="logits")
    got = found.run_heatmap(image, np.zeros((3, *PATCH), np.float32), stride=9)["scores"]
    assert np.abs(got.reshape(want.all_scores.shape) - want.all_scores).max() <= 1e-5
    with refused(OnnxExportError, "4 dimensions"):
        kcompile.export_onnx(inc, tmp_path, output="map")
    with refused(InputError, "'other'"):
        kcompile.export_onnx(inc, tmp_path, output="other")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"opset": 17}, ["17", "18 … 23"]),
        ({"batch": 0}, ["0", "at least 1"]),
        ({"score": "odds"}, ["'odds'", "logit"]),
    ],
)
def test_bad_options(pair: Any, options: Any, parts: list[str], tmp_path: Path) -> None:
    with refused(InputError, *parts):
        kcompile.export_onnx(pair[0], tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_models_too_large_for_a_file(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kcompile.exporting._LARGEST", 1000)
    with refused(OnnxExportError, MATERIALIZE, "embed=False"):
        kcompile.export_onnx(pair[0], tmp_path, embed=True)
    assert not list(tmp_path.iterdir())


def test_changed_weights(tmp_path: Path) -> None:
    inc = compiled()
    with torch.no_grad():
        next(inc.model.parameters()).add_(1)
    with refused(StaleWeightsError, "refresh"):
        kcompile.export_onnx(inc, tmp_path)


def test_folder_that_cannot_be_written(pair: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(SaveError, "can't write"):
        kcompile.export_onnx(pair[0], tmp_path / "file")


def test_export_replaces_an_earlier_one(pair: Any, tmp_path: Path) -> None:
    inc, _ = pair
    kcompile.export_onnx(inc, tmp_path)
    first = json.loads((tmp_path / MANIFEST).read_text())["id"]
    kcompile.export_onnx(inc, tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["id"] != first
    kcompile.load_onnx(tmp_path, CPU)


def test_loaded_modules_export_too(pair: Any, tmp_path: Path, seed: int) -> None:
    inc, _ = pair
    inc.save(tmp_path / "model.kcompile")
    loaded = kcompile.load(tmp_path / "model.kcompile")
    found, image = exported(loaded, tmp_path / "export"), noise(SHAPE)
    want, got = kcompile.occlusion(inc, image, stride=7), found.occlusion(image, stride=7)
    assert np.abs(got.all_scores - want.all_scores).max() <= 1e-5


def test_inlined_models_run_in_openvino(pair: Any, tmp_path: Path, seed: int) -> None:
    openvino = pytest.importorskip("openvino")
    inc, folder = pair
    kcompile.export_onnx(inc, tmp_path, batch=8, inline=True)
    assert not onnx.load(tmp_path / HEATMAP, load_external_data=False).functions
    given = {"image": noise((1, *SHAPE)).numpy(), "patch": noise((3, *PATCH)).numpy()}
    given |= {"positions": anywhere(SHAPE, PATCH, 11), "stride": np.array([9, 7])}
    want = run(folder / HEATMAP, **given)
    core = openvino.Core()
    compiled_model = core.compile_model(core.read_model(tmp_path / HEATMAP), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled_model(given)
    for name, value in want.items():
        assert np.abs(result[name] - value).max() <= 1e-5
