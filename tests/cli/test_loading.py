"""Models by name, weights by name or from files."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from kcompile.core.errors import InputError
from kcompile.loading import load_model
from tests.cli.conftest import LESIONS

FACTORY = """
import torch
from torch import nn
CLASSES = ("round", "square")
def preprocess(picture):
    return 2 * picture - 1
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)).train()
def number():
    return 7
def broken():
    return nn.NoSuchLayer()
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state_dict of a squeezenet of seven classes."""
    torch.save(models.squeezenet1_1(num_classes=7).state_dict(), tmp_path / "seven.pt")
    return tmp_path / "seven.pt"


def test_the_number_of_classes_comes_from_the_file(weights: Path) -> None:
    loaded = load_model("squeezenet1_1", str(weights), size=64)
    state = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert not loaded.model.training
    assert loaded.name(3) == "class 3"


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_training_checkpoints_are_unwrapped(wrapper: str, weights: Path, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in torch.load(weights, weights_only=True).items()}
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "checkpoint.pt")
    assert (
        load_model("squeezenet1_1", str(tmp_path / "checkpoint.pt"), size=64).model(torch.zeros(1, 3, 64, 64)).shape[1]
        == 7
    )


def test_files_without_the_heads_for_training_fit(tmp_path: Path) -> None:
    state = models.googlenet(num_classes=3, init_weights=False).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("aux")}, tmp_path / "a.pt")
    assert load_model("googlenet", str(tmp_path / "a.pt"), size=64).model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_files_that_do_not_fit_name_the_first_tensor(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks \d+ tensors, first 'conv1.weight'"):
        load_model("resnet18", str(weights))
    with pytest.raises(InputError, match=r"'classifier.1.weight' has shape \(7, 512, 1, 1\), the model's \(9, "):
        load_model("squeezenet1_1", str(weights), num_classes=9)
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(InputError, match="no place for 1 tensors, first 'extra'"):
        load_model("squeezenet1_1", str(tmp_path / "more.pt"))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    (tmp_path / "scan.png").write_bytes(b"\x89PNG\r\n")
    for name in ("text.pt", "scan.png"):
        with pytest.raises(InputError, match=f"{name} is no file of weights"):
            load_model("squeezenet1_1", str(tmp_path / name))
    for name, message in (("module.pt", "holds Python objects"), ("list.pt", "no state_dict")):
        with pytest.raises(InputError, match=message):
            load_model("squeezenet1_1", str(tmp_path / name))
    with pytest.raises(InputError, match="DEFAULT, IMAGENET1K_V1, none or an existing file"):
        load_model("squeezenet1_1", str(tmp_path / "missing.pt"))


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean resnet18"):
        load_model("resnet-18", "none")
    with pytest.raises(InputError, match="no classification model 'fcn_resnet50'"):
        load_model("fcn_resnet50", "none")


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("invalid hash value")])
def test_a_failed_download_says_what_to_do(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(
        InputError, match=r"can't download .* --weights FILE, or use random weights with --weights none"
    ):
        load_model("squeezenet1_1", "DEFAULT")


def test_named_weights_bring_their_transform_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    state = models.squeezenet1_1().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    loaded = load_model("squeezenet1_1", "IMAGENET1K_V1")
    assert loaded.name(0) == "tench (0)"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    picture, pixels = loaded.prepare(image)
    assert torch.equal(pixels, models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()(image))
    assert picture.shape == loaded.input_shape == (3, 224, 224)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert load_model("squeezenet1_1", "IMAGENET1K_V1", size=112).prepare(image)[1].shape == (3, 112, 112)
    with pytest.raises(InputError, match="has 1000 classes"):
        load_model("squeezenet1_1", "IMAGENET1K_V1", num_classes=5)


def test_the_usual_size_is_the_weights_own() -> None:
    assert load_model("inception_v3", "none").input_shape == (3, 299, 299)


def test_a_bad_size() -> None:
    with pytest.raises(InputError, match="size is 0"):
        load_model("squeezenet1_1", "none", size=0)


def test_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load_model("shapes_factory:make", size=8)
    assert loaded.input_shape == (1, 8, 8)
    assert loaded.name(1) == "square (1)"
    assert not loaded.model.training
    picture, pixels = loaded.prepare(torch.rand(1, 8, 8))
    assert torch.equal(pixels, 2 * picture - 1)
    with pytest.raises(InputError, match="returned a int"):
        load_model("shapes_factory:number")
    for name, message in (("broken", "NoSuchLayer"), ("absent", "absent")):
        with pytest.raises(InputError, match=message):
            load_model(f"shapes_factory:{name}")
    with pytest.raises(InputError, match="can't import 'shapes_nowhere'"):
        load_model("shapes_nowhere:make")


def test_a_function_with_a_file_of_weights(tmp_path: Path) -> None:
    own = load_model(LESIONS, size=64)
    changed = {key: value + 1 for key, value in own.model.state_dict().items()}
    torch.save(changed, tmp_path / "other.pt")
    other = load_model(LESIONS, str(tmp_path / "other.pt"), size=64)
    assert torch.equal(other.model.state_dict()["0.weight"], changed["0.weight"])
    assert other.weights == f"weights from {tmp_path / 'other.pt'}"
    with pytest.raises(InputError, match="there is no file"):
        load_model(LESIONS, "nowhere.pt")
