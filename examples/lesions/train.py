"""Train a lesion network from nothing: `python -m examples.lesions.train` (`--network residual`, `inception`, `gated`).

Draws the pictures (every training eye once per class, so that only the lesion tells its pictures apart), trains, prints
the accuracy on held-out eyes and writes the checkpoint. `networks.py` has the networks.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from examples.lesions.anatomy import SIDE
from examples.lesions.augment import draw_boxes, draw_fill, soft_targets
from examples.lesions.generator import CLASSES, SEEDS_PER_SET, dataset, generate
from examples.lesions.network import lesion_net, preprocess
from examples.lesions.networks import NETWORKS

TRAIN_SEED = 0  # the set of seeds that training draws from, see `dataset`
HELD_OUT_SEED = 1
EYES_PER_BATCH = 8


@dataclass(frozen=True)
class Eyes:
    """Training pictures, every eye once per class.

    Attributes:
        grey: uint8 [E, 4, 224, 224].
        masks: bool [E, 4, 224, 224].
    """

    grey: Tensor
    masks: Tensor


def draw_eyes(count: int) -> Eyes:
    """Draw `count` training eyes, each with every lesion and without."""
    grey = torch.empty(count, len(CLASSES), SIDE, SIDE, dtype=torch.uint8)
    masks = torch.empty(count, len(CLASSES), SIDE, SIDE, dtype=torch.bool)
    for eye, label in np.ndindex(count, len(CLASSES)):
        sample = generate(label, TRAIN_SEED * SEEDS_PER_SET + eye)
        grey[eye, label] = torch.from_numpy(np.rint(sample.image[0] * 255))
        masks[eye, label] = torch.from_numpy(sample.mask)
    return Eyes(grey, masks)


def draw_batch(eyes: Eyes, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return augmented pictures [4 * len(chosen), 3, 224, 224] in model units and their target probabilities."""
    pictures, targets = [], []
    for eye in chosen.tolist():
        grey, masks = eyes.grey[eye], eyes.masks[eye]
        if torch.rand((), generator=generator) < 0.5:
            grey, masks = grey.flip(-1), masks.flip(-1)
        hidden = draw_boxes(masks, generator)
        picture = preprocess((grey / 255)[:, None].expand(-1, 3, -1, -1))
        pictures.append(picture.masked_fill(hidden, draw_fill(generator)))
        targets.append(soft_targets(torch.arange(len(CLASSES)), masks, hidden))
    return torch.cat(pictures), torch.cat(targets)


def fit(eyes: Eyes, epochs: int, seed: int = 0, make: Callable[[], nn.Sequential] = lesion_net) -> nn.Sequential:
    """Train what `make` returns: AdamW, one-cycle learning rate, cross-entropy with soft targets."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make().to(memory_format=torch.channels_last)
    steps = epochs * (len(eyes.grey) // EYES_PER_BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        order, losses = torch.randperm(len(eyes.grey), generator=generator), []
        for first in range(0, len(order) - EYES_PER_BATCH + 1, EYES_PER_BATCH):
            chosen = order[first : first + EYES_PER_BATCH]
            pictures, targets = draw_batch(eyes, chosen, generator)
            logits = model(pictures.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, targets)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.3f}", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval()


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: int, seed: int = HELD_OUT_SEED) -> float:
    """Share of `dataset(pictures, seed)` that the network classifies right."""
    hits = [model(preprocess(s.image)[None]).argmax().item() == s.label for s in dataset(pictures, seed)]
    return float(np.mean(hits))


def main() -> None:
    """Train, report and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="vgg")
    parser.add_argument("--eyes", type=int, default=1200, help="training eyes (four pictures each)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=800, help="held-out pictures")
    parser.add_argument("--output", type=Path, help="default: the committed checkpoint")
    options = parser.parse_args()
    make, checkpoint = NETWORKS[options.network]
    start = time.process_time()
    model = fit(draw_eyes(options.eyes), options.epochs, make=make)
    path = options.output or checkpoint
    torch.save(model.state_dict(), path)
    minutes = (time.process_time() - start) / 60
    print(f"{minutes:.1f} minutes of CPU time on {torch.get_num_threads()} threads; wrote {path}")
    print(f"accuracy on {options.held_out} held-out pictures: {accuracy(model, options.held_out):.1%}")


if __name__ == "__main__":
    main()
