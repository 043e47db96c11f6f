"""Rays per CPU-second of training and rendering, against dense marching; and whether bf16 and `torch.compile` pay.

    python tests/bench/rays.py [--json FILE] [--device cuda]

One thread, batches of 512 rays of the scene of `pvd_al_tiny`, 96 steps along the diagonal. What dense marching means:
every step of every ray is looked at, the tensors by `grid_sample`, the hash grid by indexing its table. The variants of
`hash` and `mlp` run the same batches in bf16 autocast, and with both blocks compiled (for any number of points; the
CPU-seconds of compiling are apart). On a GPU the seconds are those of the clock.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, mse_loss

from kdzoo.datamodules.mesh_scene import MeshScene
from kdzoo.nerf.encodings import spherical_harmonics
from kdzoo.nerf.fields import HashField
from kdzoo.nerf.radiance import Radiance

STEPS, RAYS, TIMES, BOUND = 96, 512, 12, 3.0
SIZES = {
    "hash": {"levels": 8, "table": 14, "finest": 168},
    "tensors": {"resolution": 64},
    "mlp": {"octaves": 8, "layers": 4, "width": 128, "skip": 1},
    "vm": {"resolution": 96, "density_rank": 8, "colour_rank": 16},
}
VARIANTS = {"hash": ("float32", "bf16", "compile"), "mlp": ("float32", "bf16", "compile")}  # of the others float32
Work = Callable[[dict[str, Tensor]], Tensor]  # a batch of rays -> their colours


def dense(look: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], batch: dict[str, Tensor]) -> Tensor:
    """Every step of every ray is looked at, [N, 3]; `look` gives log-densities [N, S] and colours [N, S, 3]."""
    origin, direction = batch["origin"], batch["direction"]
    delta = 2 * math.sqrt(3) / STEPS
    t = (torch.arange(STEPS, device=origin.device) + 0.5) * delta + 3 - math.sqrt(3)  # cameras are at distance 3
    x = origin[:, None] + t[:, None] * direction[:, None]  # [N, S, 3]
    logarithm, colour = look(x, direction)
    tau = logarithm.clamp(-2, 7).exp() * delta * (x.abs() <= 1).all(-1)
    before = tau.cumsum(1) - tau
    weights = (-before).exp() * (1 - (-tau).exp())
    return (weights[..., None] * colour).sum(1) + (1 - weights.sum(1))[:, None] * batch["background"]


def sampled(volume: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Look into a volume [1, 28, R, R, R] by `grid_sample`."""

    def look(x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        numbers = grid_sample(volume, x.flip(-1)[None, None], align_corners=True)[0, :, 0].permute(1, 2, 0)
        harmonics = spherical_harmonics(direction, 3)[:, None, None]
        return numbers[..., 0], torch.sigmoid((numbers[..., 1:].unflatten(-1, (3, 9)) * harmonics).sum(-1))

    return look


def indexed(field: HashField) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Look into a hash grid by indexing its table."""

    def look(x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.view(-1, 3)
        index, weight = field.grid.corners(((flat + 1) / 2).clamp(0, 1))
        encoded = (field.grid.table[index.long()] * weight[..., None]).sum(1).view(len(flat), -1)
        numbers = field.head(encoded)
        colour = field.colour(numbers, direction[:, None].expand_as(x).reshape(-1, 3))
        return numbers[:, 0].view(x.shape[:2]), colour.view(x.shape)

    return look


def speed(work: Callable[[dict[str, Tensor]], Any], batches: list[dict[str, Tensor]]) -> float:
    """Rays per second, after every batch was seen twice."""
    gpu = batches[0]["origin"].is_cuda
    clock, wait = (time.perf_counter, torch.cuda.synchronize) if gpu else (time.process_time, lambda: None)
    turn = cycle(batches)
    for _ in range(2 * len(batches)):
        work(next(turn))
    wait()
    start = clock()
    for _ in range(TIMES):
        work(next(turn))
    wait()
    return TIMES * RAYS / (clock() - start)


def both(render: Work, parameters: list[Tensor], batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Rays per second of training and of rendering."""

    def training(batch: dict[str, Tensor]) -> None:
        for parameter in parameters:
            parameter.grad = None
        mse_loss(render(batch).float(), batch["rgb"]).backward()

    with torch.no_grad():
        rendering = speed(render, batches)
    return {"training": round(speed(training, batches)), "rendering": round(rendering)}


def measure(device: str) -> dict[str, Any]:
    """Everything."""
    data = MeshScene(batch_size=RAYS, batches=3)
    batches = [{key: value.to(device) for key, value in batch.items()} for batch in data.train_dataloader()]
    fields: dict[str, Any] = {}
    reference: dict[str, Any] = {}
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        radiance = Radiance(name, sizes, 1.0, STEPS, resolution=48)
        radiance.grid.carve(data.masked())
        radiance.to(device)
        parameters = list(radiance.parameters())

        def render(batch: dict[str, Tensor], radiance: Radiance = radiance) -> Tensor:
            return radiance.render(batch["origin"], batch["direction"], batch["background"])[0].rgb

        if isinstance(radiance.field, HashField):
            look = indexed(radiance.field)
            reference[name] = both(lambda batch, look=look: dense(look, batch), parameters, batches)  # type: ignore[misc]
        elif name == "tensors":
            volume = radiance.field.volume.detach().view(64, 64, 64, -1).permute(3, 0, 1, 2)[None].contiguous()
            look = sampled(volume.requires_grad_())
            reference[name] = both(lambda batch, look=look: dense(look, batch), [volume], batches)  # type: ignore[misc]
        fields[name] = {}
        for variant in VARIANTS.get(name, ("float32",)):
            seconds, field = time.process_time(), radiance.field
            if variant == "compile":
                for block in ("features", "colour"):
                    setattr(field, block, torch.compile(getattr(field, block), dynamic=True))
                both(render, parameters, batches)
            seconds = time.process_time() - seconds
            with torch.autocast(device, torch.bfloat16) if variant == "bf16" else nullcontext():
                found = both(render, parameters, batches)
            extra = {"compiling_seconds": round(seconds, 1)} if variant == "compile" else {}
            fields[name][variant] = {**found, **extra}
            print(name, variant, fields[name][variant], flush=True)
    ratios = {
        f"{name}, {what}": round(fields[name]["float32"][what] / plain, 2)
        for name, row in reference.items()
        for what, plain in row.items()
    }
    passed = all(ratio >= BOUND for ratio in ratios.values())
    return {"device": device, "ratios": ratios, "passed": passed, "rays_per_second": fields, "dense": reference}


def main() -> int:
    """Print rays per second and the ratios, and say whether they reach the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = measure(options.device)
    for name, ratio in record["ratios"].items():
        print(f"{name}: {ratio:.1f} times dense marching, bound {BOUND:g}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
