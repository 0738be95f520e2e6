"""Where does the network see the lesion? `python -m examples.demo`: a map by incremental and by full inference.

Explains the shipped retina scan with the shipped network, both ways, in one run and with the same threads. Writes the
overlay (PNG) and all scores (NPZ) to `out/`.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import kcompile
from examples.lesions.metrics import localisation
from kcompile.comparison import FullInference, Verdict, infer_in_full, judge
from kcompile.drawing import draw
from kcompile.loading import LoadedModel, load_model
from kcompile.pictures import read_picture

FOLDER = Path(__file__).parent / "lesions"
PICTURE, MASK = FOLDER / "fluid.png", FOLDER / "fluid_mask.png"
OWN_MODEL = "examples.lesions.network:load_pretrained"
FILL = 0.0  # model units: the mean colour of the training pictures


@dataclass(frozen=True)
class Experiment:
    """What was measured."""

    heat: kcompile.Heatmap
    compile_seconds: float
    full: FullInference

    def verdict(self) -> Verdict:
        """How the two agree, over all positions and classes."""
        return judge(self.heat.all_scores.reshape(self.full.scores.shape), self.full.scores, self.heat.base_scores)


def measure(loaded: LoadedModel, image: Tensor, patch: int, stride: int) -> Experiment:
    """Compile, make the map incrementally, then by full inference of every patched copy."""
    progress = sys.stderr.isatty()
    start = time.perf_counter()
    inc = kcompile.incrementalize(loaded.model, loaded.input_shape, patch)
    compiled = time.perf_counter() - start
    heat = kcompile.occlusion(inc, image, stride=stride, value=FILL, progress=progress)
    if not heat.complete:
        raise KeyboardInterrupt
    positions = heat.positions.reshape(-1, 2)
    fill = torch.full((image.shape[0],), FILL)
    full = infer_in_full(inc, image, fill, positions, heat.patch_shape, progress=progress)
    return Experiment(heat, compiled, full)


def report(done: Experiment, loaded: LoadedModel, picture: Path, mask: NDArray[np.bool_] | None) -> None:
    """Print the measurement."""
    heat, count, found = done.heat, len(done.full.scores), done.verdict()
    height, width = heat.patch_shape
    threads = torch.get_num_threads()
    lines = {
        "picture": f"{picture.name}, {heat.image_shape[0]} x {heat.image_shape[1]} pixels",
        "prediction": f"{loaded.name(heat.target)}, probability {heat.base_score:.4f}",
        "experiment": f"{height} x {width} patch at {count} positions; {threads} thread{'s' * (threads > 1)}",
        "": "",
        "compile": f"{done.compile_seconds:8.2f} s   once per model",
        "incremental": f"{heat.seconds:8.2f} s   {1e3 * heat.seconds / count:.1f} ms per position, base included",
        "full": f"{done.full.seconds:8.2f} s   {1e3 * done.full.seconds / count:.1f} ms per position, plain PyTorch",
        "ratio": f"{done.full.seconds / heat.seconds:8.2f} x   full / incremental",
        "difference": f"{found.error:8.1e}     {found.word}: of any probability; patches change {found.change:.1e}",
    }
    if mask is not None:
        where = localisation(heat.attribution(), mask, heat.patch_shape)
        lines["lesion"] = (
            f"{where.share:8.0%}     of the positive attribution lies on the lesion (grown by the patch),\n"
            f"{'':25}which is {where.area:.1%} of the picture: {where.ratio:.1f} times its share"
        )
    for name, text in lines.items():
        print(f"{name:<12}{text}".rstrip())


def shipped_mask(picture: Path) -> NDArray[np.bool_] | None:
    """The lesion in the shipped picture; None for another picture."""
    return np.asarray(Image.open(MASK)) > 0 if picture.resolve() == PICTURE.resolve() else None


def main(arguments: list[str] | None = None) -> None:
    """Run the demo."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        loaded = load_model(options.model, options.weights, size=options.size)
        picture, image = loaded.prepare(read_picture(options.image, loaded.channels))
        done = measure(loaded, image, options.patch, options.stride)
    except kcompile.KCompileError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing written")
    mask = shipped_mask(options.image) if options.model == OWN_MODEL else None
    report(done, loaded, options.image, mask)
    options.out.mkdir(parents=True, exist_ok=True)
    title = f"{loaded.name(done.heat.target)}: probability {done.heat.base_score:.3f}"
    draw(done.heat, picture, title, mask).savefig(options.out / "heat.png", dpi=120)
    done.heat.save(options.out / "scores.npz")
    print(f"\nwrote {options.out / 'heat.png'} and {options.out / 'scores.npz'}")


def parse(arguments: list[str] | None) -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--image", type=Path, default=PICTURE, help="picture to explain (default: the shipped scan)")
    add("--model", default=OWN_MODEL, help="torchvision name or package.module:function (default: the lesion network)")
    add("--weights", default="DEFAULT", help="DEFAULT, none or a file with a state_dict")
    add("--size", type=int, help="picture size in pixels (default: the model's usual one)")
    add("--patch", type=int, default=16, help="side of the patch in pixels (default: %(default)s)")
    add("--stride", type=int, default=4, help="step between positions in pixels (default: %(default)s)")
    add("--threads", type=int, help="torch threads (default: all cores)")
    add("--out", type=Path, default=Path("out"), help="folder for heat.png and scores.npz (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
