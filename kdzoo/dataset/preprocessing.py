"""From pixels to what the networks of the family see, and back: a synthetic set lives in the space of the networks."""

from typing import Any

import torch
from torch import Tensor, nn


class Preprocessing(nn.Module):
    """Standardises each channel by the data's statistics.

    Args:
        spec: The spec of the data: `mean` and `std` of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(spec[name]).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Float [B, C, H, W] in [0, 1] to what networks see."""
        return (pixels - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        """What networks see to pixels, which may leave [0, 1] where `x` was optimised."""
        return x * self.std + self.mean

    def tensors(self) -> dict[str, Tensor]:
        """What `inverse` needs beside mean and std, for the export."""
        return {}
