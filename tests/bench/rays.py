"""Rays per second of training and rendering a dense-tensor field, against plain dense marching with `grid_sample`.

python tests/bench/rays.py
"""

import math
import time

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, mse_loss

from kdzoo.datamodules.mesh_scene import MeshScene
from kdzoo.nerf.encodings import spherical_harmonics
from kdzoo.nerf.radiance import Radiance

STEPS, RESOLUTION, TIMES = 96, 64, 10


def dense(volume: Tensor, origin: Tensor, direction: Tensor, background: Tensor) -> Tensor:
    """Every step of every ray is looked at, [N, 3]; `volume` [1, 28, R, R, R]."""
    delta = 2 * math.sqrt(3) / STEPS
    t = (torch.arange(STEPS) + 0.5) * delta + 3 - math.sqrt(3)  # cameras are at distance 3
    x = origin[:, None] + t[:, None] * direction[:, None]  # [N, S, 3]
    numbers = grid_sample(volume, x.flip(-1)[None, None], align_corners=True)[0, :, 0].permute(1, 2, 0)
    inside = (x.abs() <= 1).all(-1)
    tau = numbers[..., 0].clamp(-2, 7).exp() * delta * inside
    harmonics = spherical_harmonics(direction, 3)[:, None, None]
    colour = torch.sigmoid((numbers[..., 1:].unflatten(-1, (3, 9)) * harmonics).sum(-1))
    before = tau.cumsum(1) - tau
    weights = (-before).exp() * (1 - (-tau).exp())
    return (weights[..., None] * colour).sum(1) + (1 - weights.sum(1))[:, None] * background


def seconds(work) -> float:
    """CPU-seconds of one call, after two."""
    work()
    work()
    start = time.process_time()
    for _ in range(TIMES):
        work()
    return (time.process_time() - start) / TIMES


def main() -> None:
    """Print rays per CPU-second and the ratios."""
    torch.set_num_threads(1)
    data = MeshScene(batch_size=512)
    batch = next(iter(data.train_dataloader()))
    rays = batch["origin"], batch["direction"], batch["background"]
    radiance = Radiance("tensors", {"resolution": RESOLUTION}, 1.0, STEPS, resolution=48)
    radiance.grid.carve(data.masked())
    volume = radiance.field.volume.detach().view(*(RESOLUTION,) * 3, -1).permute(3, 0, 1, 2)[None].contiguous()
    volume.requires_grad_()

    def ours() -> None:
        radiance.zero_grad()
        mse_loss(radiance.render(*rays)[0].rgb, batch["rgb"]).backward()

    def plain() -> None:
        volume.grad = None
        mse_loss(dense(volume, *rays), batch["rgb"]).backward()

    def look() -> None:
        radiance.look(*rays)

    @torch.no_grad()
    def plain_look() -> None:
        dense(volume, *rays)

    for name, pair in {"training": (ours, plain), "rendering": (look, plain_look)}.items():
        own, reference = (512 / seconds(work) for work in pair)
        print(f"{name}: {own:,.0f} rays/s, dense marching {reference:,.0f} rays/s, {own / reference:.1f} times")


if __name__ == "__main__":
    main()
