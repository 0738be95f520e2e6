"""Networks for benchmarks: torchvision's, with random weights and calibrated norm statistics."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

SIZES = {"inception_v3": 299}
_NO_INIT = {"inception_v3", "googlenet"}


def network(name: str) -> tuple[nn.Module, int]:
    """A torchvision classifier in eval mode and its usual image size, in pixels.

    Batch-norm statistics are set from noise images, so that activations keep their scale and the patch has an effect.
    """
    torch.manual_seed(0)
    extra = {"init_weights": False} if name in _NO_INIT else {}
    model = torchvision.models.get_model(name, weights=None, **extra)
    size = SIZES.get(name, 224)
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
