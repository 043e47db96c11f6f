"""How positions and directions are given to networks: hash grids, frequencies, spherical harmonics."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

PRIMES = (1, 2654435761, 805459861)  # one for each axis, of the spatial hash
NARROW = 4  # columns up to which a table's gradient is added up column by column


class Interpolate(torch.autograd.Function):
    """Weighted sums of a table's rows; differentiable in the table alone.

    Args:
        table: [T, C].
        index: int32 or int64 [P, K].
        weight: [P, K].

    Returns:
        [P, C]: sum over k of weight[p, k] * table[index[p, k]].

    The forward pass is `embedding_bag`, which never stores [P, K, C]; its own backward pass is several times slower
    than adding up here.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Look up."""
        ctx.save_for_backward(index, weight)
        ctx.shape = table.shape
        return embedding_bag(index, table, per_sample_weights=weight.to(table.dtype), mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Add up the gradient of each row."""
        (index, weight), (gradient,) = ctx.saved_tensors, gradients
        rows, columns = ctx.shape
        flat = index.reshape(-1).long()
        if columns > NARROW:
            parts = (gradient[:, None] * weight[..., None].to(gradient.dtype)).view(-1, columns)
            return gradient.new_zeros(rows, columns).index_add_(0, flat, parts), None, None
        found = gradient.new_zeros(columns, rows)
        for column in range(columns):
            found[column].scatter_add_(0, flat, (gradient[:, column, None] * weight).view(-1))
        return found.t(), None, None


def interpolate(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows, see `Interpolate`."""
    return Interpolate.apply(table, index, weight)


class TruncatedExp(torch.autograd.Function):
    """The exponential, in float32, whose gradient is that at the input clamped to [-12, 12]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Exponentiate."""
        ctx.save_for_backward(x)
        return x.float().exp()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Multiply by the exponential of the clamped input."""
        (x,), (gradient,) = ctx.saved_tensors, gradients
        return (gradient * x.float().clamp(-12, 12).exp()).to(x.dtype)


def truncated_exp(x: Tensor) -> Tensor:
    """The exponential with a bounded gradient, see `TruncatedExp`."""
    return TruncatedExp.apply(x)


def frequencies(x: Tensor, octaves: int) -> Tensor:
    """Positions and their sines and cosines: [..., 3] -> [..., 3 + 6 * octaves].

    Args:
        x: Positions.
        octaves: Number of frequencies 1, 2, 4 ...
    """
    scaled = x[..., None, :] * 2.0 ** torch.arange(octaves, device=x.device)[:, None]  # [..., octaves, 3]
    return torch.cat([x, torch.stack([scaled.sin(), scaled.cos()], -2).flatten(-3)], -1)


def spherical_harmonics(direction: Tensor, bands: int) -> Tensor:
    """Real spherical harmonics of unit vectors: [..., 3] -> [..., bands^2].

    Args:
        direction: Unit vectors.
        bands: 1 to 4; band l has 2 l + 1 functions, ordered m = -l ... l.
    """
    x, y, z = direction.unbind(-1)
    root = math.sqrt(1 / math.pi)
    found = [torch.full_like(x, 0.5 * root)]
    if bands > 1:
        found += [math.sqrt(3) / 2 * root * each for each in (y, z, x)]
    if bands > 2:
        found += [math.sqrt(15) / 2 * root * each for each in (x * y, y * z)]
        found += [math.sqrt(5) / 4 * root * (3 * z * z - 1), math.sqrt(15) / 2 * root * x * z]
        found += [math.sqrt(15) / 4 * root * (x * x - y * y)]
    if bands > 3:
        found += [math.sqrt(35 / 2) / 4 * root * y * (3 * x * x - y * y), math.sqrt(105) / 2 * root * x * y * z]
        found += [math.sqrt(21 / 2) / 4 * root * y * (5 * z * z - 1)]
        found += [math.sqrt(7) / 4 * root * z * (5 * z * z - 3)]
        found += [math.sqrt(21 / 2) / 4 * root * x * (5 * z * z - 1)]
        found += [math.sqrt(105) / 4 * root * z * (x * x - y * y)]
        found += [math.sqrt(35 / 2) / 4 * root * x * (x * x - 3 * y * y)]
    return torch.stack(found, -1)


class HashGrid(nn.Module):
    """Multi-resolution hash encoding: several grids over [0, 1]^3, each interpolated trilinearly.

    A level whose corners all fit into its table is a plain grid; in a finer one several corners share a row.

    Args:
        levels: Number of grids.
        features: Numbers per corner.
        table: log2 of the most rows of a level.
        coarsest, finest: Resolution of the first and the last level; a geometric series lies between.
    """

    scales: Tensor
    offsets: Tensor

    def __init__(self, levels: int, features: int, table: int, coarsest: int, finest: int) -> None:
        super().__init__()
        growth = (finest / coarsest) ** (1 / max(1, levels - 1))
        scales = [coarsest * growth**level - 1 for level in range(levels)]
        sides = [math.ceil(scale) + 1 for scale in scales]  # corners along an axis
        rows = [min(2**table, -(-((side + 1) ** 3) // 8) * 8) for side in sides]
        self.levels, self.features, self.mask = levels, features, 2**table - 1
        self.plain = sum((side + 1) ** 3 <= 2**table for side in sides)  # levels that are not hashed come first
        self.sides = [side + 1 for side in sides[: self.plain]]
        self.table = nn.Parameter(torch.empty(sum(rows), features).uniform_(-1e-4, 1e-4))
        self.register_buffer("scales", torch.tensor(scales), persistent=False)
        offsets = torch.tensor([0, *rows[:-1]]).cumsum(0).int()
        self.register_buffer("offsets", offsets, persistent=False)

    def corners(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The eight rows around positions [P, 3] in each level, and their weights: both [P * levels, 8]."""
        place = torch.addcmul(x.new_tensor(0.5), x[:, None], self.scales[:, None])  # [P, L, 3]
        cell = place.floor()
        upper = place - cell
        weight = torch.stack([1 - upper, upper], -1)  # [P, L, 3, 2]
        corner = torch.stack([cell, cell + 1], -1).int()
        plain, hashed = corner[:, : self.plain], corner[:, self.plain :]
        parts = []
        if self.plain:
            side = torch.tensor(self.sides, dtype=torch.int32, device=x.device)
            steps = torch.stack([torch.ones_like(side), side, side * side], -1)[..., None]  # [L, 3, 1]
            a, b, c = (plain * steps).unbind(2)
            parts.append(a[..., :, None, None] + b[..., None, :, None] + c[..., None, None, :])
        if self.plain < self.levels:
            primes = torch.tensor([prime - 2**32 if prime >= 2**31 else prime for prime in PRIMES], dtype=torch.int32)
            a, b, c = (hashed * primes.to(x.device)[:, None]).unbind(2)  # int32 wraps around, as the hash wants it
            mixed = (a[..., :, None] ^ b[..., None, :])[..., None] ^ c[..., None, None, :]
            parts.append(mixed & self.mask)
        index = torch.cat(parts, 1) if len(parts) > 1 else parts[0]  # [P, L, 2, 2, 2]
        index = index + self.offsets[:, None, None, None]
        a, b, c = weight.unbind(2)
        weights = (a[..., :, None] * b[..., None, :])[..., None] * c[..., None, None, :]
        return index.view(-1, 8), weights.view(-1, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Encode positions [P, 3] in [0, 1]: [P, levels * features]."""
        return interpolate(self.table, *self.corners(x)).view(len(x), self.levels * self.features)
