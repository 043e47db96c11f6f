"""What a step of dmae costs: against a step of mae of the same student plus the truncated teacher's forward pass alone.

    python tests/bench/dmae.py [--rounds 7] [--steps 10]

Arms are interleaved in one process, round by round; the ratio is the median over the rounds. A ratio of 1 means that
nothing is computed twice or thrown away. Run it on an idle machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.mae.dmae import DMAE
from kdzoo.mae.mae import MAE
from kdzoo.mae.pretraining import Pretraining
from kdzoo.teachers.sources import Teacher, untrained_teachers

BATCH = 64
DECODER = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2}


def training_step(method: Pretraining, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A step of `method` on `batch`: losses, gradients, AdamW."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(method.losses(batch).values())).sum().backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    spec = FashionMNIST().spec
    teacher = Teacher(timm="vit_96x6_patch4_28", weights="none.safetensors")
    with untrained_teachers():
        mae, dmae = MAE("vit_48x4_patch4_28", **DECODER), DMAE("vit_48x4_patch4_28", teacher, **DECODER)
        for method in (mae, dmae):
            method.build_for(spec)
            method.train()
    batch = {"image": torch.rand(BATCH, 1, 28, 28), "index": torch.arange(BATCH), "view": torch.zeros(BATCH).long()}
    visible, _ = dmae.mask(batch)
    arms = {
        "mae": training_step(mae, batch),
        "teacher": lambda: dmae.teacher({"image": batch["image"], "visible": visible}),
        "dmae": training_step(dmae, batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.rounds + 1):  # the first round warms up
        for name, run in arms.items():
            start = time.perf_counter()
            for _ in range(options.steps):
                run()
            if number:
                seconds[name].append((time.perf_counter() - start) / options.steps)
    ratio = statistics.median(d / (m + t) for m, t, d in zip(*seconds.values()))
    for name, values in seconds.items():
        print(f"{name:8} {1e3 * statistics.median(values):6.1f} ms a step")
    print(f"dmae / (mae + teacher) = {ratio:.3f}, to be at most 1.1")


if __name__ == "__main__":
    main()
