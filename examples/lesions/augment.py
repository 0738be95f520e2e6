"""What training does to the pictures: hides parts of them behind flat boxes, and says what the answer should be then.

The label of a lesion whose pixels are hidden to a share c is a mix: c parts "normal", 1 - c parts the lesion. That
teaches the network that a hidden lesion is no lesion and that a box is none either, so the probability falls as a patch
covers the lesion, and an occlusion map shows it. Without this, a box is something the network has never seen.
"""

import torch
from torch import Tensor

from examples.lesions.generator import CLASSES

NORMAL = CLASSES.index("normal")
UNTOUCHED = 0.25  # share of the eyes that get no box
AVERAGE_GREY = 0.7  # share of the eyes whose boxes are filled with 0 (model units); the others get a random grey


def draw_boxes(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Draw what to hide of one eye: one to four boxes of 8 to 48 pixels a side, half of them near a lesion.

    Args:
        masks: bool [K, H, W], the lesions of the eye's pictures. The boxes are shared by all of them, so that a box's
            place does not give the label away.
        generator: Source of randomness.

    Returns:
        bool [H, W]; true is hidden.
    """
    size = torch.tensor(masks.shape[-2:])
    hidden = torch.zeros(masks.shape[-2:], dtype=torch.bool)
    if torch.rand((), generator=generator) < UNTOUCHED:
        return hidden
    lesion = masks.any(dim=0).nonzero()
    for _ in range(int(torch.randint(1, 5, (), generator=generator))):
        if len(lesion) and torch.rand((), generator=generator) < 0.5:
            centre = lesion[torch.randint(len(lesion), (), generator=generator)]
        else:
            centre = (torch.rand(2, generator=generator) * size).long()
        sides = torch.randint(8, 49, (2,), generator=generator)
        top, left = (centre - sides // 2).clamp(min=0).tolist()
        bottom, right = (centre - sides // 2 + sides).tolist()
        hidden[top:bottom, left:right] = True
    return hidden


def soft_targets(labels: Tensor, masks: Tensor, hidden: Tensor, smoothing: float = 0.04) -> Tensor:
    """Class probabilities to aim at, [N, classes]: the label, moved to "normal" by the share of the lesion hidden.

    Args:
        labels: int [N].
        masks: bool [N, H, W].
        hidden: bool [N, H, W] or [H, W].
        smoothing: Share of the probability that is spread evenly, which keeps the softmax out of saturation.
    """
    area = masks.sum(dim=(-2, -1))
    share = (masks & hidden).sum(dim=(-2, -1)) / area.clamp(min=1)
    one_hot = torch.nn.functional.one_hot(labels, len(CLASSES)).float()
    normal = torch.zeros_like(one_hot)
    normal[:, NORMAL] = 1
    targets = (1 - share[:, None]) * one_hot + share[:, None] * normal
    return (1 - smoothing) * targets + smoothing / len(CLASSES)


def draw_fill(generator: torch.Generator) -> float:
    """The grey of an eye's boxes in model units: mostly 0, the fill value that occlusion uses by default."""
    if torch.rand((), generator=generator) < AVERAGE_GREY:
        return 0.0
    return float(torch.rand((), generator=generator) * 4.5 - 1.07)  # black to white
