"""The command line: `kcompile explain | tune | inspect | verify | export`.

Torch is imported when a command runs, not for its help.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from kcompile import __version__
from kcompile import cli_approximation as choices
from kcompile.core.errors import InputError, KCompileError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ScoreName(StrEnum):
    """What is recorded at each position."""

    PROBABILITY = "probability"
    LOGIT = "logit"


Images = Annotated[
    list[Path], typer.Argument(help="Picture to explain, or several: any format that PIL reads.", metavar="IMAGE")
]
MaybeImage = Annotated[
    Path | None, typer.Argument(help="Picture to check with; noise if none is given.", metavar="[IMAGE]")
]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A torchvision classification model, or package.module:function that returns a model."
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", "-w", help="DEFAULT or another name of torchvision's, none, or a state_dict file.")
]
Classes = Annotated[
    int | None, typer.Option("--num-classes", help="Of a file's model. By default from its last layer.")
]
Size = Annotated[
    int | None, typer.Option("--size", help="Side of the model's image, pixels. By default the model's usual.")
]
Patch = Annotated[str, typer.Option("--patch", "-p", help="Patch in pixels: one number, or height,width.")]
Stride = Annotated[
    str | None, typer.Option("--stride", "-s", help="Step between positions in pixels, or rows,cols. By default 4.")
]
Overlap = Annotated[
    float | None, typer.Option("--overlap", help="Instead of a stride: share of the patch, 0 to 1, that windows share.")
]
Budget = Annotated[
    str | None,
    typer.Option("--memory-budget", help="Most memory of the map, bytes or with KB, MB, GB. By default no limit."),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Torch threads. By default all cores.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kcompile {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fast occlusion explanations of CNNs: patched copies of an image are inferred incrementally."""


@app.command()
def explain(
    images: Images,
    model: Model = "resnet18",
    weights: Weights = "DEFAULT",
    num_classes: Classes = None,
    size: Size = None,
    patch: Patch = "16",
    stride: Stride = None,
    overlap: Overlap = None,
    value: Annotated[
        str,
        typer.Option(
            "--value",
            help="What the patch shows: a number in model units, or one per channel; mean (of the picture), patch-mean "
            "(of the covered pixels), blur or blur:SIGMA (pixels), noise or noise:SEED.",
        ),
    ] = "0",
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Class to explain, number or name. By default most probable."),
    ] = None,
    score: Annotated[ScoreName, typer.Option("--score", help="What is recorded.")] = ScoreName.PROBABILITY,
    roi: Annotated[
        str | None, typer.Option("--roi", help="top,left,bottom,right in pixels: patches stay inside.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Overlay, PNG; of several pictures a folder. By default heat.png, or heat."),
    ] = None,
    npz: Annotated[Path | None, typer.Option("--npz", help="All scores, NPZ. By default beside the overlay.")] = None,
    compare: Annotated[
        int, typer.Option("--compare", min=0, help="Check so many positions against full inference, and time it.")
    ] = 0,
    tuning: Annotated[
        Path | None,
        typer.Option("--tuning", help="What `kcompile tune` wrote: a certified approximation. Sets --score."),
    ] = None,
    share: choices.Share = None,
    coarse: choices.Coarse = None,
    levels: choices.Levels = None,
    tau: choices.Tau = None,
    cut: choices.Cut = None,
    rest: choices.Rest = None,
    reference: choices.Reference = None,
    correct: choices.Correct = None,
    gates: choices.Gates = None,
    dtype: choices.Dtype = None,
    samples: choices.Samples = None,
    seed: choices.Seed = None,
    memory_budget: Budget = None,
    threads: Threads = None,
) -> None:
    """Explain a prediction: slide a patch over the picture and record the score at every position."""
    with _readable_errors(threads):
        from kcompile.explain import Request, run

        approximation = choices.approximation_of(
            {
                "share": share, "coarse": coarse, "levels": levels, "tau": tau, "cut": cut, "rest": rest,
                "reference": reference, "correct": correct, "gates": gates, "dtype": dtype, "samples": samples,
                "seed": seed,
            }
        )  # fmt: skip
        request = Request(
            images=tuple(images), model=model, weights=weights, num_classes=num_classes, size=size,
            patch=_numbers("patch", patch, 1, 2), stride=_numbers("stride", stride, 1, 2) if stride else None,
            overlap=overlap, value=value, target=target, score=score.value,
            roi=_numbers("roi", roi, 4) if roi else None, out=out, npz=npz, compare=compare,
            memory_budget=_bytes(memory_budget) if memory_budget else None, tuning=tuning,
            approximation=approximation,
        )  # fmt: skip
        raise typer.Exit(run(request, progress=sys.stderr.isatty()))


@app.command()
def tune(
    images: Annotated[list[Path], typer.Argument(help="Pictures like those to be explained; 43 or more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the tuning goes, JSON.")] = Path("tuning.json"),
    model: Model = "resnet18",
    weights: Weights = "DEFAULT",
    num_classes: Classes = None,
    size: Size = None,
    patch: Patch = "16",
    stride: Stride = None,
    value: Annotated[str, typer.Option("--value", help="What the patch shows, as for explain.")] = "0",
    target_ssim: Annotated[float, typer.Option("--target-ssim", help="Similarity that maps must reach.")] = 0.9,
    coverage: Annotated[float, typer.Option("--coverage", help="Share of all pictures whose maps must.")] = 0.9,
    confidence: Annotated[float, typer.Option("--confidence", help="That they do.")] = 0.9,
    threads: Threads = None,
) -> None:
    """Find the fastest approximation whose maps are good enough, and certify it on half of the pictures."""
    with _readable_errors(threads):
        import kcompile
        from kcompile.core.checks import per_axis
        from kcompile.explain import check_file, value_of
        from kcompile.grid import steps
        from kcompile.loading import load_model
        from kcompile.pictures import read_picture
        from kcompile.search import check_goal

        # before the model is loaded, and hours before the file is written
        check_file(out, "--out", ".json", tuple(images))
        check_goal(target_ssim, coverage, confidence, len(images))
        value_of(value)
        sizes, strides = _numbers("patch", patch, 1, 2), _numbers("stride", stride, 1, 2) if stride else None
        steps(strides, None, per_axis(sizes, 2, "patch_shape"))
        loaded = load_model(model, weights, size=size, num_classes=num_classes)
        inc = kcompile.incrementalize(loaded.model, loaded.input_shape, sizes)
        found = kcompile.tune(
            inc, [loaded.prepare(read_picture(path, loaded.channels))[1] for path in images],
            target_ssim=target_ssim, coverage=coverage, confidence=confidence,
            stride=strides,
            value=value_of(value, loaded.input_shape[0]), progress=sys.stderr.isatty(),
        )  # fmt: skip
        typer.echo(found)
        found.save(out)
        typer.echo(f"wrote {out}")


@app.command()
def inspect(
    model: Model = "resnet18",
    weights: Weights = "none",
    num_classes: Classes = None,
    size: Size = None,
    patch: Patch = "16",
    stride: Annotated[int, typer.Option("--stride", "-s", min=1, help="Step between positions in pixels.")] = 4,
    plan: Annotated[bool, typer.Option("--plan", help="Show each layer's placement with the reason too.")] = False,
    code: Annotated[bool, typer.Option("--code", help="Show the emitted incremental graph as code too.")] = False,
) -> None:
    """Show what a patch leaves unchanged, layer by layer, and the speedup that this allows."""
    with _readable_errors(None):
        import kcompile
        from kcompile.loading import load_model

        loaded = load_model(model, weights, size=size, num_classes=num_classes)
        inc = kcompile.incrementalize(loaded.model, loaded.input_shape, _numbers("patch", patch, 1, 2))
        typer.echo(kcompile.analyze(inc, stride=stride))
        if plan:
            typer.echo(f"\n{inc.plan}")
        if code:
            typer.echo(f"\n# incremental part\n{inc.front.code.strip()}\n\n# dense part\n{inc.tail.code.strip()}")


@app.command()
def verify(
    image: MaybeImage = None,
    model: Model = "resnet18",
    weights: Weights = "DEFAULT",
    num_classes: Classes = None,
    size: Size = None,
    patch: Patch = "16",
    positions: Annotated[int, typer.Option("--positions", "-n", help="How many random positions.")] = 32,
    seed: Annotated[int | None, typer.Option("--seed", help="Repeats an earlier run.")] = None,
    threads: Threads = None,
) -> None:
    """Compare incremental with full inference at random positions; exit code 1 if they differ."""
    with _readable_errors(threads):
        import torch

        import kcompile
        from kcompile.loading import load_model
        from kcompile.pictures import read_picture

        loaded = load_model(model, weights, size=size, num_classes=num_classes)
        noise = torch.randn(loaded.input_shape, generator=torch.Generator().manual_seed(seed or 0))
        pixels = loaded.prepare(read_picture(image, loaded.channels))[1] if image else noise
        inc = kcompile.incrementalize(loaded.model, loaded.input_shape, _numbers("patch", patch, 1, 2))
        result = kcompile.verify(inc, pixels, positions, seed=seed)
        typer.echo(result)
        raise typer.Exit(0 if result.ok else 1)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder for the models; files of an earlier export are replaced.")],
    model: Model = "resnet18",
    weights: Weights = "DEFAULT",
    num_classes: Classes = None,
    size: Size = None,
    patch: Patch = "16",
    opset: Annotated[int, typer.Option("--opset", help="Version of ONNX's standard ops, 18 to 23.")] = 18,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Positions per turn of heatmap.onnx's loop.")
    ] = None,
    score: Annotated[ScoreName, typer.Option("--score", help="What heatmap.onnx gives.")] = ScoreName.PROBABILITY,
    inline: Annotated[bool, typer.Option("--inline", help="No functions in the models, for OpenVINO.")] = False,
    embed: Annotated[bool, typer.Option("--embed", help="Weights inside each model, for browsers.")] = False,
) -> None:
    """Write the compiled model as ONNX: materialize.onnx, incremental.onnx and heatmap.onnx."""
    with _readable_errors(None):
        import kcompile
        from kcompile.loading import load_model

        loaded = load_model(model, weights, size=size, num_classes=num_classes)
        inc = kcompile.incrementalize(loaded.model, loaded.input_shape, _numbers("patch", patch, 1, 2))
        notes = {"picture": loaded.preprocessing, "classes": list(loaded.categories)}
        kind: Literal["probability", "logit"] = "logit" if score is ScoreName.LOGIT else "probability"
        folder = kcompile.export_onnx(
            inc, out, opset=opset, batch=batch, score=kind, inline=inline, embed=embed, preprocessing=notes
        )
        for path in sorted(folder.iterdir()):
            typer.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@contextmanager
def _readable_errors(threads: int | None) -> Iterator[None]:
    """Set the threads; turn errors that name their cause into one line and exit code 2."""
    try:
        if threads:
            import torch

            torch.set_num_threads(threads)
        yield
    except KCompileError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _bytes(text: str) -> int:
    """A number of bytes: 67108864, 65536KB, 64MB or 0.0625GB.

    Raises:
        InputError: Anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)I?B?", text.strip().upper())
    if not found:
        raise InputError(f"--memory-budget is {text!r}; allowed are a number of bytes, or one with KB, MB or GB")
    return int(float(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[found[2]])


def _numbers(name: str, text: str, *counts: int) -> tuple[int, ...]:
    """Integers between commas; a single one stands for both axes where two are allowed.

    Raises:
        InputError: Not integers, or a wrong number of them.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        allowed = " or ".join(map(str, counts))
        raise InputError(f"--{name} is {text!r}; allowed are {allowed} integers with commas between them")
    return numbers * 2 if len(numbers) == 1 and 2 in counts else numbers
