"""Saved modules: what can't be saved, and files that can't be loaded; nothing is lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kcompile
from tests.support.equivalence import (
    compiled,
    incremental,
    refused,
)
from tests.support.saved_networks import Structured, Table


@torch.library.custom_op("kcompile_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return twice(x).mean((2, 3))


def test_operators_of_other_libraries_are_named(tmp_path: Path, seed: int) -> None:
    inc = incremental(Custom(), (3, 9, 9), (2, 2))
    with refused(kcompile.SaveError, "kcompile_tests.twice.default", "aten", "pickle"):
        inc.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_classes_of_outputs_that_can_not_be_rebuilt_are_named(tmp_path: Path, seed: int) -> None:
    table = Structured(lambda y, s: Table(s, y))
    inc = incremental(table.eval(), (3, 9, 9), (2, 2))
    with refused(kcompile.SaveError, "saved_networks.Table", "dict", "named tuple"):
        inc.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ bad files


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inc, path = compiled(), tmp_path / "a"
    inc.save(path)
    old = path.read_bytes()
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(data: Any, file: io.BufferedWriter, error: BaseException = error) -> None:
            file.write(b"half of it")
            raise error

        monkeypatch.setattr(torch, "save", fail)
        expected = kcompile.SaveError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            inc.save(path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
        assert path.read_bytes() == old


def test_places_that_can_not_be_written(tmp_path: Path, seed: int) -> None:
    inc = compiled()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a", tmp_path / "folder"):
        with refused(kcompile.SaveError, "can't write", str(path)):
            inc.save(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "a")
    inc.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    kcompile.load(tmp_path / "folder" / "a")


def test_files_that_are_something_else(tmp_path: Path, seed: int) -> None:
    inc = compiled()
    torch.save(inc.model.state_dict(), tmp_path / "state")
    torch.save(inc, tmp_path / "pickled")
    (tmp_path / "text").write_text("not a module")
    (tmp_path / "empty").write_bytes(b"")
    np.savez(tmp_path / "arrays.npz", a=np.arange(3))
    for name in ("state", "pickled", "text", "empty", "arrays.npz", "absent", "."):
        with refused(kcompile.SaveError, str(tmp_path / name)):
            kcompile.load(tmp_path / name)


def test_cut_and_damaged_files(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a"
    compiled().save(path)
    whole = path.read_bytes()
    weight = kcompile.load(path).front.get_buffer("0_0_0_weight_folded")
    for length in (10, 1000, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with refused(kcompile.SaveError, str(path), "cut off"):
            kcompile.load(path)
    for at in (whole.index(b'"kind": "Plan"'), whole.index(weight.numpy().tobytes())):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with refused(kcompile.SaveError, str(path), "damaged"):
            kcompile.load(path)


def _rewritten(path: Path, change: Any) -> None:
    data = torch.load(path, weights_only=True)
    data = change(data) or data
    torch.save(data, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {**data, "kcompile": 99}, "format 99.*reads up to 1.*newer"),
        (lambda data: {**data, "header": data["header"].replace('"format": ', '"format": 9')}, "format 9"),
        (lambda data: {**data, "header": data["header"].replace("aten.relu.default", "aten.nothing.default")},
         "'aten.nothing.default', which torch .* does not have"),
        (lambda data: {**data, "header": data["header"].replace("aten.relu.default", "os.system")},
         "'os.system'; allowed are operators of aten"),
        (lambda data: {**data, "header": data["header"].replace("aten.relu.default", "aten.from_file.default")},
         "'aten.from_file.default'; allowed"),
        (lambda data: {**data, "header": data["header"].replace("aten.relu.default", "aten.__class__.mro")},
         "'aten.__class__.mro'"),
        (lambda data: {**data, "header": data["header"].replace("call_function", "call_method")}, "call_method"),
        (lambda data: {**data, "tensors": data["tensors"][:1]}, "damaged"),
        (lambda data: {**data, "header": "{}"}, "damaged"),
    ],
)  # fmt: skip
def test_contents_that_are_refused(change: Any, message: str, tmp_path: Path, seed: int) -> None:
    compiled().save(tmp_path / "a")
    _rewritten(tmp_path / "a", change)
    with pytest.raises(kcompile.SaveError, match=message):
        kcompile.load(tmp_path / "a")


def test_devices_that_are_not_there(tmp_path: Path, seed: int) -> None:
    compiled().save(tmp_path / "a")
    for device in ("cuda:77", "nothing"):
        with refused(kcompile.InputError, device, 'device="cpu"'):
            kcompile.load(tmp_path / "a", device)
