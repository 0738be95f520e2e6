"""Export: the compiled plan as ONNX models in a folder."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kcompile.core.errors import InputError, OnnxExportError, SaveError
from kcompile.core.onnx_files import FORMAT, HEATMAP, INCREMENTAL, MANIFEST, MATERIALIZE, WEIGHTS
from kcompile.core.version import __version__
from kcompile.runtime.inputs import TensorInput
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.onnx_runs import fitting_batch
from kcompile.runtime.structure import structure_data
from kcompile.runtime.values import Writer
from kcompile.scoring import select

if TYPE_CHECKING:  # onnx is an extra
    from onnx import ModelProto

    from kcompile.passes.to_onnx.models import Models

OPSETS = range(18, 24)
_LARGEST = 2**31 - 1  # bytes of a protocol buffer


def export_onnx(
    inc: IncrementalModule,
    directory: str | os.PathLike[str],
    *,
    opset: int = 18,
    batch: int | None = None,
    score: Literal["probability", "logit"] = "probability",
    output: Any = None,
    inline: bool = False,
    embed: bool = False,
    preprocessing: Mapping[str, Any] | str | None = None,
) -> Path:
    """Write a compiled module as ONNX models that any ONNX runtime executes; `load_onnx` runs them.

    ``materialize.onnx`` takes an image to the model's output and the base tensors. ``incremental.onnx`` takes these,
    patches and positions to the outputs for patched images; the extents are computed in it. ``heatmap.onnx`` is both in
    one: image, patch and positions (or a stride) to scores; it is left out where the model's output has none. All share
    the file ``weights.bin``; ``kcompile.json`` says what they are.

    Args:
        inc: What `incrementalize` returned.
        directory: Made if need be; files of an earlier export are replaced.
        opset: Version of ONNX's standard ops, 18 to 23.
        batch: Positions in one turn of the loop in ``heatmap.onnx``; default: 32, fewer where dense layers make large
            tensors.
        score: What ``heatmap.onnx`` scores, as for `occlusion`.
        output: Which part of a structured output it scores.
        inline: Write the bodies of gather and superimpose where they are called, in place of functions: for runtimes
            that don't expand functions (OpenVINO 2026).
        embed: Put the weights into each model (of at most 2 GB then; twice into ``heatmap.onnx``): for runtimes that
            read no file beside a model within loops (onnxruntime-web 1.30).
        preprocessing: Noted in the files' metadata, as JSON or text: how a picture becomes an image of the model.

    Returns:
        The directory.

    Raises:
        OnnxExportError: An op or a type of the model has no counterpart in ONNX; names the op and the user's line.
        InputError: A wrong opset, batch, score or output.
        StaleWeightsError: The weights changed after compilation.
        SaveError: The files can't be written.
    """
    batch = fitting_batch(inc.plan) if batch is None else batch
    _check(opset, batch, score)
    inc._check_weights(hashed=True)
    from kcompile.passes.to_onnx.models import Models

    models = Models(_source(inc), opset, embed)
    made, reason = _made(inc, models, batch, score, output)
    notes = {"preprocessing": preprocessing, "opset": opset, "batch": batch, "score": score, "no_heatmap": reason}
    manifest = _manifest(inc, models.types(), notes)
    _finish(made, manifest, inline)
    _write(Path(directory), made, models, manifest)
    return Path(directory)


def _check(opset: Any, batch: Any, score: Any) -> None:
    if opset not in OPSETS:
        raise InputError(f"opset is {opset!r}; allowed are {OPSETS[0]} … {OPSETS[-1]}")
    if not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch is {batch!r}; allowed are integers of at least 1")
    if score not in ("probability", "logit"):
        raise InputError(f'score is {score!r}; allowed are "probability" and "logit"')


def _made(
    inc: IncrementalModule, models: Models, batch: int, score: str, output: Any
) -> tuple[dict[str, ModelProto], str | None]:
    """The models by their files' names, and why there is none for heat maps."""
    from kcompile.passes.to_onnx.heatmap import heatmap

    made, reason = {MATERIALIZE: models.materialize(), INCREMENTAL: models.incremental()}, None
    try:
        made[HEATMAP] = heatmap(models, _scored(inc, score, output), batch)
    except (InputError, OnnxExportError) as error:
        if output is not None:
            raise
        reason = str(error)
    return made, reason


def _finish(made: dict[str, ModelProto], manifest: Mapping[str, Any], inline: bool) -> None:
    """Inline the functions if that is wanted, and add what each model says of itself; in place."""
    from onnx.inliner import inline_local_functions

    for name, model in made.items():
        made[name] = inline_local_functions(model) if inline else model
        for key, value in _metadata(manifest, name).items():
            made[name].metadata_props.add(key=key, value=value)
        if (size := made[name].ByteSize()) >= _LARGEST:
            raise OnnxExportError(f"{name} would have {size} bytes, ONNX allows 2 GB: use embed=False")


def _write(target: Path, made: Mapping[str, ModelProto], models: Models, manifest: Mapping[str, Any]) -> None:
    """Write the files, in place of those of an earlier export."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in (MANIFEST, MATERIALIZE, INCREMENTAL, HEATMAP, WEIGHTS):
            (target / name).unlink(missing_ok=True)
        models.weights.write(target / WEIGHTS)
        for name, model in made.items():
            (target / name).write_bytes(model.SerializeToString())
        sizes = {name: (target / name).stat().st_size for name in (*made, WEIGHTS)}
        text = json.dumps({**manifest, "files": sizes}, indent=1)
        (target / MANIFEST).write_text(text, encoding="utf-8")  # last: without it an export is not complete
    except OSError as error:
        raise SaveError(f"can't write to {target}: {error}") from error


def _source(inc: IncrementalModule) -> Any:
    """What the emitter needs of a module."""
    from kcompile.passes.to_onnx.models import Source

    others = tuple(
        (leaf.shape, leaf.dtype)
        for index, leaf in enumerate(inc.inputs.leaves)
        if isinstance(leaf, TensorInput) and leaf.rows and index != inc.inputs.image
    )
    constants: dict[str, Tensor] = {}
    if any(not base.batched for base in inc.plan.bases):
        images = inc._like.new_zeros((1, *inc.plan.input_shape))
        rows = tuple(torch.zeros((1, *shape), dtype=dtype, device=images.device) for shape, dtype in others)
        with torch.no_grad():
            store = inc._materialized(images, rows, autocast=None)[0]
        constants = {base.name: store.tensors[base.name][0] for base in inc.plan.bases if not base.batched}
    graphs = (inc.materializer, inc.front, inc.tail)
    return Source(inc.plan, *graphs, others, inc.outputs.results, inc._like.dtype, constants)


def _scored(inc: IncrementalModule, score: str, output: Any) -> Any:
    """Which flat output is scored."""
    from kcompile.passes.to_onnx.heatmap import Scored

    empty = torch.empty(1, 1)  # something that counts as a tensor in the place of each
    entries = inc.outputs.entries
    leaves = [empty.clone() if isinstance(entry, int) else None for entry in entries]
    chosen = select(pytree.tree_unflatten(leaves, inc.outputs.spec), output)
    index = next((i for i, leaf in enumerate(leaves) if leaf is chosen and leaf is not None), None)
    if index is None:
        raise InputError(f"output={output!r} is no tensor that patches change")
    result = entries[index]
    assert isinstance(result, int)
    return Scored(index, result, score, inc.outputs.activations[index])


def _manifest(inc: IncrementalModule, types: Mapping[str, str], notes: Mapping[str, Any]) -> dict[str, Any]:
    from kcompile.passes.to_onnx.call import name_of_type

    return {
        "kcompile": FORMAT,
        "made_by": {"kcompile": __version__, "torch": torch.__version__},
        "id": uuid.uuid4().hex,
        "input_shape": list(inc.plan.input_shape),
        "patch_shape": list(inc.plan.patch_shape),
        "dtype": name_of_type(inc._like.dtype),
        **notes,
        "types": dict(types),
        "outputs": {
            "entries": [_entry(entry) for entry in inc.outputs.entries],
            "structure": structure_data(inc.outputs.spec, Writer()),
            "activations": list(inc.outputs.activations),
        },
        "plan": json.loads(inc.plan.to_json()),
    }


def _entry(entry: Any) -> Any:
    """Where an output comes from: a result's number, what the base gives, or a constant."""
    if entry is None or isinstance(entry, int):
        return "base" if entry is None else entry
    (value,) = entry
    if isinstance(value, Tensor):
        return {"values": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    return {"constant": value}


def _metadata(manifest: Mapping[str, Any], name: str) -> dict[str, str]:
    """What each model says of itself."""
    kept = {key: manifest[key] for key in ("id", "input_shape", "patch_shape", "preprocessing", "batch", "score")}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in kept.items()}
    return {"kcompile_version": __version__, "model": name, **{f"kcompile_{key}": text for key, text in texts.items()}}
