"""Weights of few bits: buckets, uniform levels and learned points, as parametrisations of a network's parameters.

A tensor is cut into buckets of k values (the last one is filled up with its last value; fewer than k values are one
bucket). Each bucket is scaled to [0, 1] by its own range a = max - min and offset b = min:

    v = (w - b) / a,    Q(w) = a * level(v) + b

Source: Polino, Pascanu and Alistarh, arXiv 1802.05668, section 2.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from kdzoo.errors import UserError

Rounding = Literal["nearest", "stochastic"]
FLAT = 1e-10  # a bucket of one value has no range


class Buckets(NamedTuple):
    """A tensor in buckets.

    Attributes:
        scaled: v in [0, 1], [buckets, k].
        scale: a of every bucket, [buckets, 1], positive.
        offset: b of every bucket, [buckets, 1].
    """

    scaled: Tensor
    scale: Tensor
    offset: Tensor

    @classmethod
    def of(cls, weight: Tensor, size: int) -> Self:
        """Cut `weight`, of any shape, into buckets of `size` values."""
        flat = weight.flatten()
        if (rest := len(flat) % size) > 0 and len(flat) > size:
            flat = torch.cat([flat, flat[-1:].expand(size - rest)])
        rows = flat.view(-1, min(size, len(flat)))
        offset = rows.amin(1, keepdim=True)
        scale = rows.amax(1, keepdim=True) - offset
        scale = torch.where(scale < FLAT, torch.ones_like(scale), scale)
        return cls((rows - offset) / scale, scale, offset)

    def restore(self, levels: Tensor, shape: torch.Size) -> Tensor:
        """The tensor of `shape` whose scaled values are `levels`, [buckets, k]."""
        return (self.scale * levels + self.offset).flatten()[: math.prod(shape)].view(shape)


class Codes(NamedTuple):
    """A quantised tensor as it is stored.

    Attributes:
        codes: number of each value's level, int64 [values].
        levels: the levels, float32 [levels], in the units of a bucket.
        scale: float32 [buckets].
        offset: float32 [buckets].
        shape: of the tensor.
    """

    codes: Tensor
    levels: Tensor
    scale: Tensor
    offset: Tensor
    shape: torch.Size


class UniformLevels(nn.Module):
    """Rounds a tensor to 2^bits evenly spaced levels of each bucket; the gradient goes straight through.

    Args:
        bits: 1 to 8.
        bucket: k, how many values share a range.
        rounding: to the nearest level, or in training up or down at random so that the mean is the value.
        while_training: False: training goes on with the full precision, and only what is evaluated is rounded.
    """

    def __init__(self, bits: int, bucket: int, rounding: Rounding = "nearest", while_training: bool = True) -> None:
        super().__init__()
        self.steps, self.bucket = 2**bits - 1, bucket
        self.rounding, self.while_training = rounding, while_training

    def forward(self, weight: Tensor) -> Tensor:
        """A tensor to its quantised one."""
        if self.training and not self.while_training:
            return weight
        with torch.no_grad():
            buckets = Buckets.of(weight, self.bucket)
            levels = buckets.scaled * self.steps
            if self.training and self.rounding == "stochastic":
                levels = (levels + torch.rand_like(levels)).floor().clamp(max=self.steps)
            else:
                levels = levels.round()
            quantised = buckets.restore(levels / self.steps, weight.shape)
        # Exactly the quantised value forward; backward the derivative of `weight`.
        return quantised + (weight - weight.detach())

    def encode(self, weight: Tensor) -> Codes:
        """What is stored of a tensor."""
        buckets = Buckets.of(weight, self.bucket)
        codes = (buckets.scaled * self.steps).round().long().flatten()[: weight.numel()]
        levels = torch.arange(self.steps + 1, device=weight.device) / self.steps
        return Codes(codes, levels, buckets.scale.flatten(), buckets.offset.flatten(), weight.shape)


class LearnedPoints(nn.Module):
    """Replaces each scaled value of a fixed tensor by the nearest of its quantisation points, which are learned.

        dL/dp_j = sum over the values that are nearest to p_j of a_bucket * dL/dw

    Args:
        weight: The tensor.
        count: How many points it gets at first.
        most: The largest number that `place` may give it; more than it has values are never used.
        bucket: k, how many values share a range.
    """

    used: Tensor

    def __init__(self, weight: Tensor, count: int, most: int, bucket: int) -> None:
        super().__init__()
        self.bucket = bucket
        self.points = nn.Parameter(torch.zeros(min(most, weight.numel()), dtype=weight.dtype))
        self.register_buffer("used", torch.zeros(len(self.points), dtype=torch.bool))
        self.place(weight, count)

    @torch.no_grad()
    def place(self, weight: Tensor, count: int) -> None:
        """Put `count` points at the quantiles of the scaled values; the others are not used."""
        count = min(count, len(self.points))
        ordered = Buckets.of(weight, self.bucket).scaled.flatten()[: weight.numel()].sort().values
        ranks = torch.linspace(0, len(ordered) - 1, count, dtype=weight.dtype, device=weight.device)
        low = ranks.floor()
        self.points.zero_()
        self.points[:count] = torch.lerp(ordered[low.long()], ordered[ranks.ceil().long()], ranks - low)
        self.used.copy_(torch.arange(len(self.used)) < count)

    def nearest(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """The points in ascending order, those not in use infinite, and for each scaled value the nearest's number."""
        points = torch.where(self.used, self.points, torch.inf).sort().values  # a step may have changed their order
        between = (points[1:] + points[:-1]).detach() / 2
        return points, torch.bucketize(scaled, between)

    def forward(self, weight: Tensor) -> Tensor:
        """A tensor to its quantised one."""
        buckets = Buckets.of(weight.detach(), self.bucket)
        points, numbers = self.nearest(buckets.scaled)
        return buckets.restore(points[numbers], weight.shape)

    @torch.no_grad()
    def encode(self, weight: Tensor) -> Codes:
        """What is stored of a tensor."""
        buckets = Buckets.of(weight, self.bucket)
        points, numbers = self.nearest(buckets.scaled)
        codes, levels = numbers.flatten()[: weight.numel()], points[: int(self.used.sum())]
        return Codes(codes, levels, buckets.scale.flatten(), buckets.offset.flatten(), weight.shape)


def quantise(
    network: Any, make: Callable[[Tensor], nn.Module], first_and_last: bool = True
) -> dict[str, UniformLevels | LearnedPoints]:
    """Parametrise every parameter of a timm network, biases and affine terms of norms among them.

    Args:
        network: The network; its parameters become the full-precision originals.
        make: From a parameter to its parametrisation.
        first_and_last: Whether the first layer and the classifier take part.

    Returns:
        The parametrisations by the parameters' names.
    """
    owners = [
        (f"{path}.{name}".lstrip("."), module, name)
        for path, module in network.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    ]
    first = (network.pretrained_cfg.get("first_conv") or owners[0][0].rpartition(".")[0]) if owners else ""
    ends = [network.get_submodule(path) for path in ([first] if isinstance(first, str) else first)]
    spared = [] if first_and_last else [*ends, network.get_classifier()]
    made: dict[str, Any] = {}
    for path, module, name in owners:
        if not any(module is end for end in spared):
            made[path] = make(getattr(module, name))
            register_parametrization(module, name, made[path])
    return made


def encode(network: nn.Module, quantised: Mapping[str, UniformLevels | LearnedPoints]) -> dict[str, Codes]:
    """The quantised parameters of a network as they are stored, by name."""
    found = {}
    for path, parametrisation in quantised.items():
        owner, _, name = path.rpartition(".")
        original = network.get_submodule(owner).parametrizations[name].original  # type: ignore[union-attr,index]
        found[path] = parametrisation.encode(original.detach())
    return found


def shared_out(budget: int, gradient_norms: list[float]) -> list[int]:
    """How many points each tensor gets of `budget` for each: half of it, and by its gradient's norm of the rest.

    Source: arXiv 1802.05668, section 3.3, and the authors' code. What rounding leaves over goes to the tensor with the
    fewest; what it takes too much comes from the one with the most. Nobody gets fewer than two.
    """
    half, total, norm = budget // 2, budget * len(gradient_norms), sum(gradient_norms)
    rest = total - half * len(gradient_norms)
    shares = [each / norm if norm > 0 else 1 / len(gradient_norms) for each in gradient_norms]
    counts = [max(2, half + round(share * rest)) for share in shares]
    while (over := sum(counts) - total) and (over < 0 or max(counts) > 2):
        number = counts.index(max(counts) if over > 0 else min(counts))
        counts[number] = max(2, counts[number] - over)
    return counts


def huffman_bits(counts: Counter[int]) -> int:
    """How many bits all symbols take in a Huffman code for these counts."""
    heap = sorted(counts.values())
    if len(heap) == 1:
        return heap[0]
    total = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined  # one bit more for each symbol below
        heapq.heappush(heap, joined)
    return total


def check_bits(bits: int, bucket: int) -> None:
    """Raise a `UserError` if there are no such levels or buckets."""
    if not 1 <= bits <= 8:
        raise UserError(f"bits={bits} is no number of bits for a weight: give 1 to 8.")
    if bucket < 2:
        raise UserError(f"bucket={bucket} values have no range of their own: give 2 or more, such as 256.")
