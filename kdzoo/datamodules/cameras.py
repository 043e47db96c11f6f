"""Cameras: rays through pixels, and where further views of a scene are taken from.

Poses are camera-to-world matrices [4, 4] with OpenGL's axes: x to the right, y up, the view along -z.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

JITTER = math.pi / 20  # 9 degrees: how far a hard pose is turned, and a pose of a forward-facing scene


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; all in pixels, the centre of the first pixel at (0.5, 0.5)."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    @staticmethod
    def with_angle(width: int, height: int, angle: float) -> "Camera":
        """The camera whose picture is `angle` radians wide."""
        focal = 0.5 * width / math.tan(0.5 * angle)
        return Camera(width, height, focal, focal, width / 2, height / 2)

    def scaled(self, width: int) -> "Camera":
        """The same view with another width."""
        height = max(1, round(self.height * width / self.width))
        x, y = width / self.width, height / self.height
        return Camera(width, height, self.fx * x, self.fy * y, self.cx * x, self.cy * y)


def rays(camera: Camera, poses: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Rays through the centres of pixels.

    Args:
        camera: Its sizes.
        poses: [4, 4], or one for each pixel [N, 4, 4].
        pixels: int64 [N], row * width + column.

    Returns:
        Origins [N, 3] and directions of length one [N, 3].
    """
    column, row = pixels % camera.width, pixels // camera.width
    x, y = (column + 0.5 - camera.cx) / camera.fx, (camera.cy - row - 0.5) / camera.fy
    local = torch.stack([x, y, -torch.ones_like(x)], -1)  # [N, 3]
    direction = (poses[..., :3, :3] @ local[..., None]).squeeze(-1)
    return poses[..., :3, 3].expand_as(direction), direction / direction.norm(dim=-1, keepdim=True)


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Poses [..., 4, 4] at positions [..., 3] that look at `target`, with `up` upwards in the picture."""
    back = torch.nn.functional.normalize(position - target, dim=-1)
    right = torch.linalg.cross(up.expand_as(back), back)
    # Straight above, any right will do.
    spare = torch.roll(up, 1).expand_as(back)
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, torch.linalg.cross(spare, back), right)
    right = torch.nn.functional.normalize(right, dim=-1)
    pose = torch.eye(4, dtype=position.dtype).expand(*position.shape[:-1], 4, 4).clone()
    pose[..., :3, :3] = torch.stack([right, torch.linalg.cross(back, right), back], -1)
    pose[..., :3, 3] = position
    return pose


def turned(poses: Tensor, draws: Tensor, most: float = JITTER) -> Tensor:
    """Turn cameras where they stand, by roll, pitch and yaw of up to `most` radians either way.

    Args:
        poses: [N, 4, 4].
        draws: [N, 3] in [0, 1).
        most: The largest angle.
    """
    angles = most * (2 * draws - 1)
    cos, sin, zero, one = angles.cos(), angles.sin(), torch.zeros(len(poses)), torch.ones(len(poses))

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, -1).view(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0])
    about_y = matrix(cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1])
    about_z = matrix(cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one)
    found = poses.clone()
    found[:, :3, :3] = about_z @ about_x @ about_y @ poses[:, :3, :3]
    return found


@dataclass(frozen=True)
class SpherePrior:
    """Views from around an object: all azimuths, more of them near the horizon.

    Each whole degree `a` of `elevation` has (90 - a) // 15 + 1 views, whose elevations are uniform between `a` and the
    five degrees below it, not below the horizon.

    Args:
        radius: Least and largest distance from the target.
        elevation: First and last degree; 0 and 79 as published for synthetic scenes.
        up: Unit vector.
        target: What is looked at.
    """

    radius: tuple[float, float]
    elevation: tuple[int, int] = (0, 79)
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def poses(self, draws: Tensor) -> Tensor:
        """Poses [N, 4, 4] from draws [N, 6] in [0, 1); the elevation is stratified over the N."""
        degrees = torch.arange(self.elevation[0], self.elevation[1] + 1)
        share = ((90 - degrees) // 15 + 1).clamp(min=1).cumsum(0)
        quantile = (torch.arange(len(draws)) + draws[:, 0]) / len(draws) * share[-1]
        band = degrees[torch.searchsorted(share, quantile, right=True).clamp(max=len(degrees) - 1)]
        elevation = torch.deg2rad((band - 5 * draws[:, 1]).clamp(min=min(0, self.elevation[0])))
        azimuth = 2 * math.pi * draws[:, 2]
        radius = self.radius[0] + (self.radius[1] - self.radius[0]) * draws[:, 3]
        up, target = torch.tensor(self.up), torch.tensor(self.target)
        first, second = horizontal(up)
        flat = azimuth.cos()[:, None] * first + azimuth.sin()[:, None] * second
        around = elevation.cos()[:, None] * flat + elevation.sin()[:, None] * up
        return look_at(target + radius[:, None] * around, target, up)


@dataclass(frozen=True)
class BoxPrior:
    """Views from a box, turned by up to nine degrees: for scenes that were photographed from one side.

    Args:
        low, high: Corners of the box.
        target: What is looked at.
        up: Unit vector.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    target: tuple[float, float, float]
    up: tuple[float, float, float]

    def poses(self, draws: Tensor) -> Tensor:
        """Poses [N, 4, 4] from draws [N, 6] in [0, 1)."""
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        position = low + (high - low) * draws[:, :3]
        return turned(look_at(position, torch.tensor(self.target), torch.tensor(self.up)), draws[:, 3:])


Prior = SpherePrior | BoxPrior


def horizontal(up: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors that make a right-handed frame with the unit vector `up` [3]."""
    axis = torch.eye(3)[int(up.abs().argmin())]
    first = torch.nn.functional.normalize(axis - (axis @ up) * up, dim=0)
    return first, torch.linalg.cross(up, first)


def mean_up(poses: Tensor) -> tuple[float, float, float]:
    """What the cameras [N, 4, 4] have above them, on the mean: a unit vector."""
    return triple(torch.nn.functional.normalize(poses[:, :3, 1].mean(0), dim=0))


def triple(vector: Tensor) -> tuple[float, float, float]:
    """Three plain numbers."""
    x, y, z = vector.tolist()
    return x, y, z


def around(poses: Tensor, elevation: tuple[int, int] | None = None, up: Sequence[float] | None = None) -> SpherePrior:
    """The prior of cameras [N, 4, 4] around the origin: their distances, and where `elevation` is None theirs too.

    Elevations are then the 5th to the 95th percentile of the cameras', a degree more at either end.
    """
    upwards = triple(torch.tensor(up)) if up is not None else mean_up(poses)
    position = poses[:, :3, 3]
    radius = position.norm(dim=1)
    if elevation is None:
        sine = (position @ torch.tensor(upwards)) / radius
        low, high = torch.quantile(torch.rad2deg(torch.asin(sine.clamp(-1, 1))), torch.tensor([0.05, 0.95])).tolist()
        elevation = int(low - 1), int(high + 1)
    return SpherePrior((float(radius.min()), float(radius.max())), elevation, upwards)


def in_front(poses: Tensor) -> BoxPrior:
    """The prior of cameras [N, 4, 4] that look forward: their bounding box, a tenth larger at either end."""
    position = poses[:, :3, 3]
    low, high = position.amin(0), position.amax(0)
    margin = (high - low) / 10
    ahead = torch.nn.functional.normalize(-poses[:, :3, 2].mean(0), dim=0)
    centre = position.mean(0)
    target = centre + ahead * centre.norm().clamp(min=1e-3)  # the scene is about the origin
    return BoxPrior(triple(low - margin), triple(high + margin), triple(target), mean_up(poses))


def orbit(prior: Prior, count: int) -> Tensor:
    """Poses [count, 4, 4] of a turn: around the object 30 degrees above the horizon, or about the middle of the box."""
    angle = 2 * math.pi * torch.arange(count) / count
    up = torch.tensor(prior.up)
    first, second = horizontal(up)
    if isinstance(prior, BoxPrior):
        low, high = torch.tensor(prior.low), torch.tensor(prior.high)
        reach = (high - low).abs().amax() / 4
        position = (low + high) / 2 + reach * (angle.cos()[:, None] * first + angle.sin()[:, None] * second)
        return look_at(position, torch.tensor(prior.target), up)
    height = math.radians(min(30, max(prior.elevation)))
    flat = angle.cos()[:, None] * first + angle.sin()[:, None] * second
    around = math.cos(height) * flat + math.sin(height) * up
    target = torch.tensor(prior.target)
    return look_at(target + sum(prior.radius) / 2 * around, target, up)
