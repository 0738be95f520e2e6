"""Does an occlusion map of the lesion network find the lesion? `python -m examples.lesions.evaluate --pictures 50`.

Maps are made with plain PyTorch here, by full inference of every occluded copy; `evaluate` takes any other function.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.lesions.generator import CLASSES, Sample, dataset
from examples.lesions.metrics import Localisation, localisation
from examples.lesions.network import preprocess
from examples.lesions.networks import NETWORKS, load_network
from examples.lesions.train import HELD_OUT_SEED

PATCH = 16
STRIDE = 8
BATCH = 9  # small enough for the caches, which larger ones outgrow

Explainer = Callable[[nn.Module, Tensor], NDArray[np.float32]]
"""From the model and one picture [3, H, W] in model units to the predicted class's attribution [H, W]."""


class Finding(NamedTuple):
    """One picture's result."""

    label: int
    predicted: int
    localisation: Localisation


@torch.inference_mode()
def occlusion_map(
    model: nn.Module, picture: Tensor, patch: int = PATCH, stride: int = STRIDE, value: float = 0.0
) -> NDArray[np.float32]:
    """Hide a square at a time and see how far the predicted class's probability falls.

    Args:
        model: Classifier in eval mode, [N, 3, H, W] to logits.
        picture: [3, H, W] in model units.
        patch: Side of the square, pixels.
        stride: Step between squares, pixels.
        value: What the square is filled with, model units.

    Returns:
        float32 [H, W]: the fall, averaged over the squares that cover a pixel; NaN where none does.
    """
    base = model(picture[None]).softmax(-1)[0]
    target = int(base.argmax())
    height, width = picture.shape[-2:]
    corners = [(r, c) for r in range(0, height - patch + 1, stride) for c in range(0, width - patch + 1, stride)]
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    for first in range(0, len(corners), BATCH):
        batch = corners[first : first + BATCH]
        # Channels last is about twice as fast here.
        copies = picture.repeat(len(batch), 1, 1, 1).contiguous(memory_format=torch.channels_last)
        for copy, (row, column) in zip(copies, batch, strict=True):
            copy[:, row : row + patch, column : column + patch] = value
        falls = base[target] - model(copies).softmax(-1)[:, target]
        for fall, (row, column) in zip(falls, batch, strict=True):
            total[row : row + patch, column : column + patch] += fall
            count[row : row + patch, column : column + patch] += 1
    return (total / count).numpy()  # 0 / 0 is NaN


def lesioned(pictures: int, seed: int = HELD_OUT_SEED) -> list[Sample]:
    """Return the first held-out pictures that have a lesion, `pictures` of them."""
    samples = dataset(2 * pictures + len(CLASSES), seed)  # three of four have one
    return [s for s in samples if s.mask.any()][:pictures]


def evaluate(
    model: nn.Module, samples: list[Sample], explain: Explainer = occlusion_map, patch: int = PATCH
) -> list[Finding]:
    """Explain every picture and hold the map against its lesion's mask."""
    findings = []
    for sample in samples:
        picture = preprocess(sample.image)
        with torch.inference_mode():
            predicted = int(model(picture[None]).argmax())
        findings.append(Finding(sample.label, predicted, localisation(explain(model, picture), sample.mask, patch)))
    return findings


def main() -> None:
    """Evaluate a committed network and print accuracy and localisation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=50, help="held-out pictures with a lesion")
    parser.add_argument("--network", choices=NETWORKS, default="vgg")
    options = parser.parse_args()
    findings = evaluate(load_network(options.network), lesioned(options.pictures))
    print(f"accuracy on {len(findings)} lesions: {np.mean([f.label == f.predicted for f in findings]):.1%}")
    for label, name in enumerate(CLASSES):
        ratios = [f.localisation.ratio for f in findings if f.label == label]
        if ratios:
            print(f"{name:>9}: median ratio {np.median(ratios):5.2f}, lowest {min(ratios):5.2f} of {len(ratios)}")
    share, area, ratio = np.median([f.localisation for f in findings], axis=0)
    print(f"  overall: median ratio {ratio:5.2f} (share of the heat {share:.0%}, of the area {area:.1%})")


if __name__ == "__main__":
    main()
