"""`kcompile explain`: pictures, one model, a map of each, with what is printed and written."""

from __future__ import annotations

import difflib
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer
from torch import Tensor

from kcompile.api import incrementalize
from kcompile.approximation import Approximation
from kcompile.cli_approximation import with_cut
from kcompile.comparison import infer_in_full, judge, spread
from kcompile.core.checks import per_axis
from kcompile.core.errors import InputError
from kcompile.drawn_fills import Blur, Noise
from kcompile.experiment import occlusion
from kcompile.fills import Fill, as_fill
from kcompile.grid import grid, steps
from kcompile.heatmap import Heatmap
from kcompile.loading import LoadedModel, load_model
from kcompile.pictures import read_picture
from kcompile.runtime.module import IncrementalModule
from kcompile.tuning import Tuning


@dataclass(frozen=True)
class Request:
    """The options of the command, see `kcompile explain --help`."""

    images: tuple[Path, ...]
    model: str
    weights: str
    num_classes: int | None
    size: int | None
    patch: tuple[int, ...]
    stride: tuple[int, ...] | None
    overlap: float | None
    value: str
    target: str | None
    score: str
    roi: tuple[int, ...] | None
    out: Path | None
    npz: Path | None
    compare: int
    memory_budget: int | None = None
    tuning: Path | None = None
    approximation: Approximation | None = None


@dataclass(frozen=True)
class Files:
    """One picture and what is written for it: the overlay and all scores."""

    image: Path
    out: Path
    npz: Path


def run(request: Request, progress: bool) -> int:
    """Make the maps, print the findings, write the files.

    Returns:
        The exit code: 0, 1 if a comparison failed or proves nothing, 130 after Ctrl-C.

    Raises:
        KCompileError: Bad options, picture or model.
    """
    files = plan_files(request)
    tuning = None if request.tuning is None else Tuning.load(request.tuning)
    _check_together(request, tuning)
    request = request if tuning is None else replace(request, score=tuning.kind.score)
    if tuning is not None and request.stride is None and request.overlap is None:
        request = replace(request, stride=tuning.kind.stride)
    _check_alone(request)
    loaded = load_model(request.model, request.weights, size=request.size, num_classes=request.num_classes)
    approximation = None if request.approximation is None else with_cut(request.approximation, loaded.model)
    target = class_number(request.target, loaded.categories)
    pictures = [loaded.prepare(read_picture(one.image, loaded.channels)) for one in files]  # a bad one is told now
    start = time.perf_counter()
    inc = incrementalize(loaded.model, loaded.input_shape, request.patch, memory_budget=request.memory_budget)
    compiled = time.perf_counter() - start
    patch, shape = inc.plan.patch_shape, loaded.input_shape
    step = steps(request.stride, request.overlap, patch)
    value = value_of(request.value, shape[0])
    fill = as_fill(value, shape, patch)
    grid(shape[1:], patch, step, request.roi)  # so is a bad roi
    _line("model", f"{request.model}, {loaded.weights}, compiled in {compiled:.1f} s")
    code = 0
    for one, (picture, image) in zip(files, pictures, strict=True):
        _line("picture", f"{one.image.name}: {loaded.preprocessing}")
        heat: Heatmap = occlusion(
            inc, image, stride=step, value=value, target=target, roi=request.roi, score=request.score,
            progress=progress, approximation=approximation, tuning=tuning,
        )  # fmt: skip
        _show(heat, step, loaded, request)
        if tuning is not None and heat.approximation is not None:
            _line("certified", f"{tuning.promise} ({tuning.met} of {tuning.images} met it)")
        same = not request.compare or _compare(inc, heat, image, fill, request)
        _write(heat, picture, loaded, one)
        if not heat.complete:
            return 130
        code = code if same else 1
    return code


def _check_alone(request: Request) -> None:
    """What needs no model, before it is loaded."""
    steps(request.stride, request.overlap, per_axis(request.patch, 2, "patch_shape"))
    value_of(request.value)
    for path in request.images:
        if not path.exists():
            raise InputError(f"there is no picture {path}")


def _check_together(request: Request, tuning: Tuning | None) -> None:
    """Refuse options that contradict each other."""
    if request.approximation is not None and tuning is not None:
        raise InputError(f"--tuning is given, and {request.approximation}; allowed is one of them")
    if request.compare and (request.approximation or (tuning is not None and not tuning.approximation.exact)):
        raise InputError("--compare checks exact maps; an approximate one tells by itself how far it is off")


LISTED = 20  # classes whose names fit into a message


def class_number(target: str | None, categories: tuple[str, ...]) -> int | None:
    """A class by number or by name, whatever the case.

    Raises:
        InputError: No such name.
    """
    if target is None or target.removeprefix("-").isdigit():
        return None if target is None else int(target)
    names = [name.lower() for name in categories]
    if target.lower() in names:
        return names.index(target.lower())
    close = difflib.get_close_matches(target.lower(), names, n=3)
    if len(names) <= LISTED:
        hint = f"allowed are {', '.join(categories)}, or a number" if names else "this model's have only numbers"
    else:
        hint = f"allowed are a number below {len(names)}, or a name"
    if close:
        hint = f"did you mean {', '.join(close)}?"
    raise InputError(f"there is no class {target!r}: {hint}")


def value_of(text: str, channels: int | None = None) -> Any:
    """What the patch shows: mean, patch-mean, blur[:sigma], noise[:seed], or numbers in model units, one per channel.

    Args:
        text: The option's.
        channels: Of the model's images; None while they aren't known.

    Raises:
        InputError: Anything else.
    """
    name, colon, number = text.partition(":")
    try:
        if name == "blur" and colon:
            return Blur(float(number))
        if name == "noise" and colon:
            return Noise(int(number))
        if text in ("mean", "patch-mean", "blur", "noise"):
            return text
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if any(map(math.isnan, values)):
        raise InputError(f"value is {text}; allowed are numbers, not NaN")
    if not values or (channels is not None and len(values) not in (1, channels)):
        raise InputError(
            f"--value is {text!r}; allowed are mean, patch-mean, blur, blur:SIGMA, noise, noise:SEED, one number, "
            f"or {channels or 'one per channel'} with commas between them"
        )
    return values[0] if len(values) == 1 else values


def plan_files(request: Request) -> list[Files]:
    """What is written for each picture; refuse before the work what would fail after it.

    Of one picture the map goes to ``--out`` and ``--npz``, of several into the folder ``--out``, under their names.

    Raises:
        InputError: Names that can't be written, or that are those of a picture or of each other.
    """
    if len(request.images) == 1:
        out = request.out or Path("heat.png")
        files = [Files(request.images[0], out, request.npz or out.with_suffix(".npz"))]
    else:
        folder = request.out or Path("heat")
        if request.npz is not None or folder.suffix:
            given = f"--out is {folder}" if request.npz is None else f"--npz is {request.npz}"
            raise InputError(f"{given}; of several pictures the maps go into one folder, --out, under their names")
        files = [Files(path, folder / f"{path.stem}.png", folder / f"{path.stem}.npz") for path in request.images]
        names = [one.image.stem for one in files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"two pictures are called {twice[0]}: their maps would be one file")
    for one in files:
        check_file(one.out, "--out", ".png", request.images)
        check_file(one.npz, "--npz", ".npz", request.images)
    return files


def check_file(path: Path, option: str, suffix: str, images: tuple[Path, ...]) -> None:
    """Refuse a name that the result can't be written under; its folder is made.

    Raises:
        InputError: Another suffix, a picture itself, a folder, or a folder that can't be made.
    """
    if path.suffix.lower() != suffix:
        raise InputError(f"{option} is {path}; allowed is a name that ends in {suffix}")
    if path.resolve() in [image.resolve() for image in images]:
        raise InputError(f"{option} is {path}, the picture itself, which would be overwritten")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't make the folder of {path}: {error.strerror}") from error
    if path.is_dir():
        raise InputError(f"{option} is {path}, a folder")


def _show(heat: Heatmap, step: tuple[int, ...], loaded: LoadedModel, request: Request) -> None:
    rows, cols = heat.scores.shape
    done = heat.scores.size - int(np.isnan(heat.scores).sum())
    patch, stride = ("x".join(map(str, size)) for size in (heat.patch_shape, step))
    _line("prediction", f"{loaded.name(heat.target)}, {request.score} {heat.base_score:.4f}")
    _line("positions", f"{rows * cols} ({rows} rows, {cols} columns), patch {patch}, stride {stride}")
    _line("seconds", f"{heat.seconds:.2f}, or {1e3 * heat.seconds / max(done, 1):.1f} ms per position")
    if heat.approximation is not None:
        _line("approximate", f"{heat.approximation}" + (f"; {heat.error}" if heat.error else ""))
    if not heat.complete:
        _line("interrupted", f"{done} of {rows * cols} positions are done; the map is partial")


def _compare(inc: IncrementalModule, heat: Heatmap, image: Tensor, fill: Fill, request: Request) -> bool:
    """Hold some positions against full inference; true if they agree, and the patches matter."""
    positions, quick = spread(heat, request.compare)
    if not len(positions):
        return True
    patches = fill.source(image, heat.patch_shape)
    full = infer_in_full(inc, image, patches, positions, heat.patch_shape, score=request.score)
    found = judge(quick, full.scores, heat.base_scores)
    each, whole = full.seconds / len(positions), heat.seconds / max(int(np.isfinite(heat.scores).sum()), 1)
    _line("compare", f"{found.word}: {len(positions)} positions against full inference")
    _line("", f"largest difference {found.error:.1e}, allowed {found.tolerance:.1e}; patches change {found.change:.1e}")
    if found.word == "void":
        _line("", "(the patches change so little that this proves nothing: try trained weights or --score logit)")
    _line("", f"full inference {1e3 * each:.1f} ms per position: {each / whole:.2f} times the incremental one")
    return found.word == "equal"


def _write(heat: Heatmap, picture: Tensor, loaded: LoadedModel, files: Files) -> None:
    title = f"{loaded.name(heat.target)}: {heat.score} {heat.base_score:.3g}"
    try:
        heat.plot(picture, path=files.out, title=title)
        heat.save(files.npz)
    except OSError as error:
        raise InputError(f"can't write the map: {error}") from error
    _line("wrote", f"{files.out} and {files.npz}")


def _line(name: str, text: str) -> None:
    typer.echo(f"{name:<12}{text}")
