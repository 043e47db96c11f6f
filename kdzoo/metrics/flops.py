"""How much a network computes for one image."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(network: nn.Module, spec: dict[str, Any]) -> int:
    """Floating-point operations of one image: products and convolutions (a multiply-add is two), and scans.

    Args:
        network: Takes images [B, C, H, W]; its modules with `scan_flops(length)` say what a product counter misses.
        spec: The data's: `channels` and `image_size`.
    """
    extra: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, _: extra.append(module.scan_flops(inputs[0].shape[1])))
        for module in network.modules()
        if hasattr(module, "scan_flops")
    ]
    modes = {module: module.training for module in network.modules()}
    device = next(network.parameters()).device
    try:
        network.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, spec["channels"], *spec["image_size"], device=device))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() + sum(extra)
