"""From pixels to what the networks of the family see, and back: a synthetic set lives in the space of the networks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.errors import UserError


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


LARGEST = 3 * 64 * 64  # values of an image: its square is what ZCA keeps
EPSILON = 0.1  # added to the eigenvalues


class ZCA(Preprocessing):
    """Whitens images: decorrelates all their pixels, with as little change of the picture as that allows.

        x = U (S + eps)^-1/2 U^T (pixels - mean),   U S U^T = covariance of the training pixels in [0, 1]

    It takes the place of the standardisation. The statistics are those of `fit`, and are part of a checkpoint.
    Source: the preprocessing of trajectory matching on CIFAR, arXiv 2203.11932, with eps = 0.1 as in kornia.

    Args:
        spec: The spec of the data: `channels` and `image_size`.
    """

    centre: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        size = spec["channels"] * spec["image_size"][0] * spec["image_size"][1]
        if size > LARGEST:
            raise UserError(
                f"ZCA of images with {size:,} values needs a matrix of {4e-9 * size**2:.1f} GB: leave zca out."
            )
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, size))  # eigenvectors as columns
        self.register_buffer("scale", torch.full((size,), EPSILON**-0.5))  # of each eigenvector; 1 / sqrt(S + eps)

    @torch.no_grad()
    def fit(self, parts: Callable[[], Iterable[Tensor]], count: int) -> None:
        """Take the statistics from `count` images: `parts`, called twice, gives float [n, C, H, W] in [0, 1]."""
        device, size = self.centre.device, len(self.centre)
        centre = torch.zeros(size, dtype=torch.float64, device=device)
        for part in parts():
            centre += part.to(device).flatten(1).double().sum(0)
        self.centre.copy_(centre / count)
        rows = (part.to(device).flatten(1) - self.centre for part in parts())
        if count < size:  # the same from the other side, which is smaller
            _, singular, vectors = torch.linalg.svd(torch.cat(list(rows)).double(), full_matrices=False)
            values, vectors = singular**2 / max(1, count - 1), vectors.T
        else:
            covariance = torch.zeros(size, size, dtype=torch.float64, device=device)
            for part in rows:
                covariance += part.T @ part
            values, vectors = torch.linalg.eigh(covariance / (count - 1))
        self.basis.zero_()[:, : len(values)] = vectors.float()
        self.scale.fill_(EPSILON**-0.5)[: len(values)] = (values.clamp(min=0) + EPSILON).rsqrt().float()

    def forward(self, pixels: Tensor) -> Tensor:
        """Float [B, C, H, W] in [0, 1] to whitened images."""
        return self._stretch(pixels.flatten(1) - self.centre, self.scale, EPSILON**-0.5).view_as(pixels)

    def inverse(self, x: Tensor) -> Tensor:
        """Whitened images to pixels."""
        return (self._stretch(x.flatten(1), 1 / self.scale, EPSILON**0.5) + self.centre).view_as(x)

    def _stretch(self, flat: Tensor, scale: Tensor, rest: float) -> Tensor:
        """Scale [B, D] along the eigenvectors, and by `rest` what none of them spans."""
        return rest * flat + ((flat @ self.basis) * (scale - rest)) @ self.basis.T

    def tensors(self) -> dict[str, Tensor]:
        """`zca_centre` [D], `zca_basis` [D, D] and `zca_scale` [D]."""
        return {"zca_centre": self.centre, "zca_basis": self.basis, "zca_scale": self.scale}
