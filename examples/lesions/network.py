"""The network that is explained: a small VGG-style classifier of 224x224 retina scans, and its committed weights.

Eight 3x3 convolutions in five stages (the layout of VGG11, Simonyan and Zisserman 2015, with batch-norm and about a
quarter of its channels), each stage closed by a 2x2 max pool, then a global average pool and one linear layer:
0.47 GMAC per picture, 0.47 million parameters. The output is logits over `CLASSES`.

Like torchvision's models it wants normalised pictures: `preprocess` maps [0, 1] to model units, in which 0 is the mean
grey of the training set. So the fill value 0 hides a part of a picture behind average grey.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.lesions.generator import CLASSES

MEAN = (0.235, 0.235, 0.235)
STD = (0.220, 0.220, 0.220)
STAGES = ((16,), (48,), (64, 64), (96, 96), (128, 128))
CHECKPOINT = Path(__file__).with_name("lesion_net.pt")


def lesion_net() -> nn.Sequential:
    """Return the network with fresh weights: [N, 3, 224, 224] in model units to logits [N, 4]."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage in STAGES:
        for outputs in stage:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, len(CLASSES)))


def preprocess(pictures: Tensor | NDArray[np.float32]) -> Tensor:
    """Map pictures in [0, 1], [..., 3, H, W], to model units, float32 of the same shape: (picture - MEAN) / STD."""
    tensor = torch.as_tensor(pictures, dtype=torch.float32)
    mean, std = (torch.tensor(v, device=tensor.device)[:, None, None] for v in (MEAN, STD))
    return (tensor - mean) / std


def load_pretrained(path: str | Path = CHECKPOINT) -> nn.Sequential:
    """Return the network in eval mode with the weights of a checkpoint (by default the committed one)."""
    model = lesion_net()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()
