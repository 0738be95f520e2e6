"""Networks for benchmarks: torchvision's and a tiny one, with random weights and calibrated norm statistics."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

SIZES = {"inception_v3": 299, "tiny": 32}
_WITH_AUX = {"inception_v3", "googlenet"}  # auxiliary heads are used in training alone


def network(name: str, size: int = 0) -> tuple[nn.Module, int]:
    """A torchvision classifier in eval mode and its usual image size (or ``size``), in pixels; "tiny" is for tests.

    Batch-norm statistics are set from noise images, so that activations keep their scale and the patch has an effect.
    """
    torch.manual_seed(0)
    model = _tiny() if name == "tiny" else _torchvision(name)
    size = size or SIZES.get(name, 224)
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = None  # cumulative average
            norm.reset_running_stats()
        model.train()
        for part in model.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.eval()
        with torch.no_grad():
            model(torch.randn(8, 3, size, size))
    return model.eval(), size


def _torchvision(name: str) -> nn.Module:
    extra = {"init_weights": False, "aux_logits": False} if name in _WITH_AUX else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **extra)
    return model


def _tiny() -> nn.Module:
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(8, 8, 3, 1, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5))
