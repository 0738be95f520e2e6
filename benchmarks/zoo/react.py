"""Weights with which a network reacts to a patch: freshly made ones can leave 1e-14 of it, and hide any error."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_TINY = 1e-12
# A rectifier centred on its kink amplifies small differences by 1.5 or so per norm (and rounding by 1e16 after 90 of
# them); one two deviations above it by 1.03.
_DEEP = 40  # norms
_ABOVE = 2.0  # deviations


@torch.no_grad()
def make_reacting(model: nn.Module, images: Tensor) -> nn.Module:
    """Give a network weights with which it reacts to a patch; in place, in eval mode afterwards.

    In one run over ``images`` the norms' factors are perturbed and their statistics calibrated, and each convolution or
    linear layer is scaled so that its outputs spread by 1; then all are perturbed.
    """
    model.eval()
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    _open_layer_scales(model)
    for norm in norms:
        _calibrating(norm, _ABOVE if len(norms) > _DEEP else 0.0)
    hooks = [layer.register_forward_hook(_spread_by_one) for layer in layers]
    model(images)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        layer.weight.mul_(torch.empty_like(layer.weight).uniform_(0.9, 1.1))
    for norm in norms:
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.add_(torch.randn_like(norm.running_mean) * 0.1 * norm.running_var.sqrt())
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))
    return model.eval()


def _calibrating(norm: nn.modules.batchnorm._BatchNorm, shift: float) -> None:
    """Put a batch norm into training, with fresh statistics and random factors, a third of them negative."""
    norm.momentum = None  # cumulative average
    norm.reset_running_stats()
    norm.train()
    for part in norm.modules():  # a norm may hold its activation, or dropout
        if part is not norm:
            part.eval()
    if norm.weight is not None:
        norm.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(norm.weight) < 0.3, -1.0, 1.0))
    if norm.bias is not None:
        norm.bias.uniform_(shift - 0.5, shift + 0.5)


def _open_layer_scales(model: nn.Module) -> None:
    """Replace factors that begin as one (tiny or zero) number everywhere, such as ConvNeXt's layer scale of 1e-6."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.Conv2d | nn.Linear):
            continue
        for name, value in part.named_parameters(recurse=False):
            if "bias" in name or "token" in name or "embed" in name or not value.is_floating_point():
                continue
            if value.numel() and bool((value == value.flatten()[0]).all()):
                value.uniform_(0.5, 1.5)


def _spread_by_one(layer: Any, inputs: Any, output: Tensor) -> Tensor | None:
    if not layer.weight.any():  # heads that begin with zeros
        layer.weight.normal_(0, 1 / math.sqrt(layer.weight[0].numel()))
        output = layer.forward(*inputs)
    spread = float(output.std())
    factor = 1 / spread if spread > _TINY else 1.0  # of one number it is NaN
    scaled = layer.weight
    if type(layer) not in (nn.Conv2d, nn.Linear):
        if hasattr(layer, "gain"):
            scaled = layer.gain  # its weights are standardised: their own scale has no effect
        elif "Std" in type(layer).__name__:
            return None
    scaled.mul_(factor)
    if layer.bias is not None:
        layer.bias.mul_(factor)
    return output * factor
