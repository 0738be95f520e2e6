"""`kcompile explain`: one picture, one model, one map, with what is printed and written."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from torch import Tensor

from kcompile.api import incrementalize
from kcompile.comparison import infer_in_full, judge, spread
from kcompile.core.errors import InputError
from kcompile.experiment import occlusion
from kcompile.grid import grid
from kcompile.heatmap import Heatmap
from kcompile.loading import LoadedModel, load_model
from kcompile.pictures import read_picture
from kcompile.runtime.module import IncrementalModule


@dataclass(frozen=True)
class Request:
    """The options of the command, see `kcompile explain --help`."""

    image: Path
    model: str
    weights: str
    num_classes: int | None
    size: int | None
    patch: tuple[int, ...]
    stride: tuple[int, ...]
    value: str
    target: str | None
    score: str
    roi: tuple[int, ...] | None
    out: Path
    npz: Path
    compare: int


def run(request: Request, progress: bool) -> int:
    """Make the map, print the findings, write the files.

    Returns:
        The exit code: 0, 1 if the comparison failed or proves nothing, 130 after Ctrl-C.

    Raises:
        KCompileError: Bad options, picture or model.
    """
    _check_files(request)
    loaded = load_model(request.model, request.weights, size=request.size, num_classes=request.num_classes)
    target = class_number(request.target, loaded.categories)
    picture, image = loaded.prepare(read_picture(request.image, loaded.channels))
    fill = fill_value(request.value, image)
    roi = None if request.roi is None else (request.roi[0], request.roi[1], request.roi[2], request.roi[3])
    start = time.perf_counter()
    inc = incrementalize(loaded.model, loaded.input_shape, request.patch)
    compiled = time.perf_counter() - start
    grid(
        loaded.input_shape[1:], inc.plan.patch_shape, request.stride, roi
    )  # a bad roi is told before anything is shown
    _line("model", f"{request.model}, {loaded.weights}, compiled in {compiled:.1f} s")
    _line("picture", f"{request.image.name}: {loaded.preprocessing}")
    heat = occlusion(
        inc, image, stride=request.stride, value=fill, target=target, roi=roi, score=request.score, progress=progress
    )
    _show(heat, loaded, request)
    same = not request.compare or _compare(inc, heat, image, fill, request)
    _write(heat, picture, loaded, request)
    return 130 if not heat.complete else 0 if same else 1


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
    hint = f"did you mean {', '.join(close)}?" if close else "give its number"
    raise InputError(f"there is no class {target!r}: {hint}")


def fill_value(text: str, image: Tensor) -> Tensor:
    """What the patch shows, [C] in model units: "mean", one number, or one per channel with commas between them.

    Raises:
        InputError: Anything else.
    """
    channels = image.shape[0]
    if text == "mean":
        return image.mean(dim=(1, 2))
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, channels):
        raise InputError(f"--value is {text!r}; allowed are mean, one number, or {channels} with commas between them")
    return torch.tensor(values).expand(channels)


def _check_files(request: Request) -> None:
    """Refuse before the work what would fail after it."""
    for path, option, suffix in ((request.out, "--out", ".png"), (request.npz, "--npz", ".npz")):
        if path.suffix.lower() != suffix:
            raise InputError(f"{option} is {path}; allowed is a name that ends in {suffix}")
        if path.resolve() == request.image.resolve():
            raise InputError(f"{option} is {path}, the picture itself, which would be overwritten")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"can't make the folder of {path}: {error.strerror}") from error
        if path.is_dir():
            raise InputError(f"{option} is {path}, a folder")


def _show(heat: Heatmap, loaded: LoadedModel, request: Request) -> None:
    rows, cols = heat.scores.shape
    done = int(np.isfinite(heat.scores).sum())
    patch, stride = ("x".join(map(str, size)) for size in (heat.patch_shape, request.stride))
    _line("prediction", f"{loaded.name(heat.target)}, {request.score} {heat.base_score:.4f}")
    _line("positions", f"{rows * cols} ({rows} rows, {cols} columns), patch {patch}, stride {stride}")
    _line("seconds", f"{heat.seconds:.2f}, or {1e3 * heat.seconds / max(done, 1):.1f} ms per position")
    if not heat.complete:
        _line("interrupted", f"{done} of {rows * cols} positions are done; the map is partial")


def _compare(inc: IncrementalModule, heat: Heatmap, image: Tensor, fill: Tensor, request: Request) -> bool:
    """Hold some positions against full inference; true if they agree, and the patches matter."""
    positions, quick = spread(heat, request.compare)
    if not len(positions):
        return True
    full = infer_in_full(inc, image, fill, positions, (heat.patch_shape[0], heat.patch_shape[1]), score=request.score)
    found = judge(quick, full.scores, heat.base_scores)
    each, whole = full.seconds / len(positions), heat.seconds / max(int(np.isfinite(heat.scores).sum()), 1)
    _line("compare", f"{found.word}: {len(positions)} positions against full inference")
    _line("", f"largest difference {found.error:.1e}, allowed {found.tolerance:.1e}; patches change {found.change:.1e}")
    if found.word == "void":
        _line("", "(the patches change so little that this proves nothing: try trained weights or --score logit)")
    _line("", f"full inference {1e3 * each:.1f} ms per position: {each / whole:.2f} times the incremental one")
    return found.word == "equal"


def _write(heat: Heatmap, picture: Tensor, loaded: LoadedModel, request: Request) -> None:
    title = f"{loaded.name(heat.target)}: {request.score} {heat.base_score:.3g}"
    try:
        heat.plot(picture, path=request.out, title=title)
        heat.save(request.npz)
    except OSError as error:
        raise InputError(f"can't write the map: {error}") from error
    _line("wrote", f"{request.out} and {request.npz}")


def _line(name: str, text: str) -> None:
    typer.echo(f"{name:<12}{text}")
