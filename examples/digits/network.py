"""A small network for the digits, and its committed weights: `python -m examples.digits.network` makes them anew."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.digits.data import CLASSES, SIDE, digits, preprocess

CHECKPOINT = Path(__file__).with_name("digits_net.pt")
EPOCHS, BATCH = 40, 50
LARGEST_BOX = 12  # pixels


def digits_net() -> nn.Sequential:
    """Return the network with fresh weights: [N, 1, 32, 32] in model units to logits [N, 10]; 3 MMAC per picture."""
    layers: list[nn.Module] = []
    inputs = 1
    for outputs in (16, 32, 48):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, len(CLASSES)))


def load_pretrained(path: str | Path = CHECKPOINT) -> nn.Sequential:
    """Return the network in eval mode with the weights of a checkpoint (by default the committed one)."""
    model = digits_net()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def hide(pictures: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide a box of each picture (model units) behind 0, and tell what the answer should be then.

    The label gives way to "any digit" by the share of the ink that is hidden, as for the lesions
    (`examples.lesions.augment`): so the network has seen patches, and its probability falls as they hide more.

    Returns:
        Pictures [N, 1, 32, 32] and probabilities [N, 10] to aim at.
    """
    ink = pictures - pictures.amin(dim=(1, 2, 3), keepdim=True)
    hidden = torch.zeros_like(pictures, dtype=torch.bool)
    for one in hidden[:, 0]:
        sides = torch.randint(0, LARGEST_BOX + 1, (2,), generator=generator).tolist()
        top, left = (int(torch.randint(0, SIDE - side + 1, (), generator=generator)) for side in sides)
        one[top : top + sides[0], left : left + sides[1]] = True
    share = ((ink * hidden).sum(dim=(1, 2, 3)) / ink.sum(dim=(1, 2, 3)))[:, None]
    targets = (1 - share) * functional.one_hot(labels, len(CLASSES)) + share / len(CLASSES)
    return pictures.masked_fill(hidden, 0.0), 0.96 * targets + 0.04 / len(CLASSES)


def fit(pictures: Tensor, labels: Tensor, epochs: int = EPOCHS, seed: int = 0) -> nn.Sequential:
    """Train a fresh network on pictures in model units: AdamW, one-cycle learning rate, soft targets."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = digits_net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps, pct_start=0.2)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            covered, targets = hide(pictures[chosen], labels[chosen], generator)
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(covered), targets))
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, part: str = "test") -> float:
    """Share of a part's digits that the network reads right."""
    pictures, labels = digits(part)
    return float((model(preprocess(pictures)).argmax(dim=1) == labels).float().mean())


def main() -> None:
    """Train, save and report."""
    pictures, labels = digits("train")
    model = fit(preprocess(pictures), labels)
    torch.save(model.state_dict(), CHECKPOINT)
    print(f"wrote {CHECKPOINT.name}; accuracy on {len(digits('test')[1])} test pictures: {accuracy(model):.1%}")


if __name__ == "__main__":
    main()
