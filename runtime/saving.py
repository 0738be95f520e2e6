"""Compiled modules in files: what `IncrementalModule.save` and `kcompile.load` do.

A file is what ``torch.save`` makes of ``{"kcompile": format, "header": JSON, "tensors": [...]}``. It is read with
``weights_only=True``, and its graphs name operators of a closed list (`runtime.graph_data`), so that loading it runs no
code of its maker's. The header has plan, graphs, structure of the outputs, and what made the file.
"""

from __future__ import annotations

import json
import os
import pickle
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import torch

from kcompile.core.errors import InputError, SaveError
from kcompile.core.plan import Plan
from kcompile.core.version import __version__
from kcompile.runtime.budget import check_budget
from kcompile.runtime.folding import Folding
from kcompile.runtime.frozen import FrozenModel
from kcompile.runtime.graph_data import graph_data, read_graph
from kcompile.runtime.inputs import FixedInput, Inputs, Leaf, TensorInput
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.outputs import Outputs
from kcompile.runtime.portable import GRAPHS
from kcompile.runtime.structure import read_structure, structure_data
from kcompile.runtime.values import Reader, Writer

FORMAT = 1


def save(inc: IncrementalModule, path: str | os.PathLike[str]) -> None:
    """See `IncrementalModule.save`."""
    writer = Writer()
    like = inc._like
    header = {
        "made_by": {"kcompile": __version__, "torch": torch.__version__},
        "input_shape": inc.plan.input_shape,
        "patch_shape": inc.plan.patch_shape,
        "dtype": writer.data(like.dtype),
        "device": writer.data(like.device),
        "policy": inc.policy,
        "switches_autocast": inc.switches_autocast,
        "memory_budget": inc.memory_budget,
        "plan": json.loads(inc.plan.to_json()),
        "folding": {name: writer.data(scale) for name, scale in inc.folding.scales().items()},
        "graphs": {part: graph_data(getattr(inc, part), writer) for part in GRAPHS},
        "inputs": _inputs_data(inc.inputs, writer),
        "outputs": {
            "entries": writer.data(list(inc.outputs.entries)),
            "structure": structure_data(inc.outputs.spec, writer),
            "activations": inc.outputs.activations,
        },
    }
    data = {"kcompile": FORMAT, "header": json.dumps(header, allow_nan=False), "tensors": writer.tensors}
    with _replacing(path) as file, _checksums():
        torch.save(data, file)


def load(path: str | os.PathLike[str], device: torch.device | str | None = None) -> IncrementalModule:
    """Read a compiled module that `IncrementalModule.save` wrote.

    Neither the compiler nor the model's code is needed. The plain call is full inference of the saved graph; named
    tuples and dataclasses of the model's own are replaced by classes of the same name and fields. Weights need no
    gradient. There is nothing to compile again: `IncrementalModule.refresh` and casts to another type are errors.

    Args:
        path: The file. Loading it runs no code of its maker's; yet load files of people you trust alone, for a damaged
            graph can make PyTorch's operators crash.
        device: Where to; default: where the module was when it was saved.

    Raises:
        SaveError: There is no such file, it isn't one of kcompile's, is damaged, or needs a newer kcompile.
        InputError: No such device here.
    """
    data = _read(Path(path))
    header: Any = None
    try:
        header = json.loads(data["header"])
        inc = _module(header, Reader(data["tensors"]))
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError, StopIteration, RuntimeError) as error:
        made = header.get("made_by") if isinstance(header, dict) else None
        raise SaveError(f"{path} is damaged, or not for this version ({made}): {error!r}") from error
    return inc.to(_device(header["device"]["device"] if device is None else device))


def _module(header: dict[str, Any], reader: Reader) -> IncrementalModule:
    plan = Plan.from_json(json.dumps(header["plan"]))
    materializer, front, tail = (read_graph(header["graphs"][part], plan, reader) for part in GRAPHS)
    like = torch.empty(0, dtype=reader.value(header["dtype"]))
    inputs, written = _read_inputs(header["inputs"], reader), header["outputs"]
    entries, activations = tuple(reader.value(written["entries"])), tuple(written["activations"])
    outputs = Outputs(entries, read_structure(written["structure"], reader), activations)
    folding = Folding({name: reader.value(scale) for name, scale in header.get("folding", {}).items()})
    model = FrozenModel(materializer, inputs, outputs, like, folding)
    inc = IncrementalModule(model, plan, (materializer, front, tail), inputs, outputs, like, folding)
    inc.policy, inc.switches_autocast = header["policy"], bool(header["switches_autocast"])
    inc._memory_budget = check_budget(header.get("memory_budget"))  # earlier files have none
    return inc


def _inputs_data(inputs: Inputs, writer: Writer) -> dict[str, Any]:
    leaves = [{field.name: writer.data(getattr(leaf, field.name)) for field in fields(leaf)} for leaf in inputs.leaves]
    return {"leaves": leaves, "structure": structure_data(inputs.spec, writer), "image": inputs.image}


def _read_inputs(data: dict[str, Any], reader: Reader) -> Inputs:
    leaves: list[Leaf] = []
    for written in data["leaves"]:
        values = {name: reader.value(value) for name, value in written.items()}
        leaves.append(FixedInput(**values) if "value" in values else TensorInput(**values))
    return Inputs(read_structure(data["structure"], reader), tuple(leaves), data["image"])


def _read(path: Path) -> dict[str, Any]:
    """The dictionary in a file."""
    if not path.is_file():
        raise SaveError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            begun = file.read(4) == b"PK\x03\x04"
        if not zipfile.is_zipfile(path):
            what = "cut off" if begun else "no file of kcompile's"
            raise SaveError(f"{path} is {what}: write it with inc.save(path)")
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at checksums
                raise SaveError(f"{path} is damaged: the checksum of {damaged} is wrong")
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SaveError(f"{path} holds Python objects, which are not loaded: it was not written by inc.save") from error
    except (OSError, RuntimeError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise SaveError(f"can't read {path}: {str(error)[:200]}") from error
    if not isinstance(data, dict) or not isinstance(data.get("kcompile"), int):
        raise SaveError(f"{path} is no file of kcompile's: write it with inc.save(path)")
    if data["kcompile"] > FORMAT:
        raise SaveError(f"{path} has format {data['kcompile']}, this kcompile ({__version__}) reads up to {FORMAT}: "
                        "install a newer one")  # fmt: skip
    return data


def _device(wanted: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f'there is no device {wanted} here; give another one, as load(path, device="cpu")') from error


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` once it is complete; where that fails, all is as it was."""
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        raise SaveError(f"can't write {path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _checksums() -> Iterator[None]:
    """Inside, torch.save writes checksums, whatever the user has set."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
