"""Points along rays where a scene may have something, and how what is seen there becomes pixels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdzoo.nerf.occupancy import OccupancyGrid


@dataclass(frozen=True)
class Samples:
    """Points on N rays, packed: ray after ray, each from near to far.

    Attributes:
        x: [P, 3].
        ray: int64 [P], ascending, which ray each is on.
        t: [P], distance from the origin of the ray.
        delta: length of the step that each stands for.
        rays: N.
    """

    x: Tensor
    ray: Tensor
    t: Tensor
    delta: float
    rays: int

    @property
    def counts(self) -> Tensor:
        """Number of points on each ray, int64 [N]."""
        return torch.bincount(self.ray, minlength=self.rays)

    @property
    def starts(self) -> Tensor:
        """Row of the first point of each ray, int64 [N]."""
        counts = self.counts
        return counts.cumsum(0) - counts


@torch.no_grad()
def march(origin: Tensor, direction: Tensor, grid: OccupancyGrid, steps: int, jitter: Tensor | None = None) -> Samples:
    """Take equal steps along rays, and keep the points in occupied cells.

    Args:
        origin: [N, 3].
        direction: [N, 3], of length one.
        grid: Where there may be something.
        steps: Steps along the diagonal of the scene's box.
        jitter: [N] in [0, 1), by how much of a step each ray is shifted; None: half a step.
    """
    delta = 2 * math.sqrt(3) * grid.bound / steps
    near, far = crossing(origin, direction, grid.low, grid.high)
    hits = (far > near).nonzero().squeeze(1)
    near, far = near[hits], far[hits]
    shift = torch.full_like(near, 0.5) if jitter is None else jitter[hits]
    most = int(((far - near).max() / delta).ceil()) if len(hits) else 0
    t = near[:, None] + (torch.arange(most, device=near.device) + shift[:, None]) * delta  # [H, K]
    start, slope = grid.place(origin[hits]), direction[hits] * grid.cells_per_unit
    flat = torch.zeros(t.shape, dtype=torch.int32, device=t.device)
    for axis in range(3):  # cell after cell of an axis: no [H, K, 3]
        cell = torch.addcmul(start[:, axis, None], t, slope[:, axis, None]).int()
        flat = flat * grid.resolution + cell.clamp_(0, grid.resolution - 1)
    rows, columns = (grid.occupied.view(-1)[flat] & (t < far[:, None])).nonzero(as_tuple=True)
    ray, distance = hits[rows], t[rows, columns]
    return Samples(origin[ray] + distance[:, None] * direction[ray], ray, distance, delta, len(origin))


def crossing(origin: Tensor, direction: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays [N, 3] enter and leave the box from `low` to `high` [3]: distances [N], far <= near if they miss."""
    slope = torch.where(direction.abs() < 1e-9, torch.full_like(direction, 1e-9), direction)
    first, second = (low - origin) / slope, (high - origin) / slope
    return torch.minimum(first, second).amax(1).clamp(min=0), torch.maximum(first, second).amin(1)


@dataclass(frozen=True)
class Pixels:
    """What rays see.

    Attributes:
        rgb: [N, 3], the background included.
        opacity: [N].
        depth: [N], mean distance of what is seen, times the opacity.
        weights: [P], what each point adds to its ray.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor


def composite(sigma: Tensor, colour: Tensor, samples: Samples, background: Tensor) -> Pixels:
    """Blend points from near to far (the volume-rendering sum), in float32 with a float64 running sum.

    Args:
        sigma: Densities [P], not negative.
        colour: [P, 3].
        samples: Where the points are.
        background: [N, 3].
    """
    tau = sigma.float() * samples.delta
    passed = tau.double().cumsum(0)  # over all rays: what lies before a ray's first point is taken off again
    before = passed - tau
    offset = torch.cat([before, before.new_zeros(1)])[samples.starts]  # of a ray without points nobody asks
    weights = (-(before - offset[samples.ray])).exp().float() * -torch.expm1(-tau)
    empty = weights.new_zeros(samples.rays)
    opacity = empty.index_add(0, samples.ray, weights)
    depth = empty.index_add(0, samples.ray, weights * samples.t)
    seen = weights.new_zeros(samples.rays, 3).index_add(0, samples.ray, weights[:, None] * colour.float())
    return Pixels(seen + (1 - opacity)[:, None] * background, opacity, depth, weights)
