"""What the ways to differentiate an inner loop keep in memory, and how that grows from 10 to 40 steps.

    python tests/bench/unroll.py [--json FILE]

An iteration of trajectory matching: 100 synthetic images of 28 pixels, a ConvNet of width 32. Every way and every
number of steps has a process of its own; what counts is the most memory of its own that it has had, above what it had
after its imports and the making of the network.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

STEPS = (10, 40)
MODES = ("full", "checkpoint", "tesla")
CONSTANT = 1.25  # times as much, at most, for four times the steps
LINEAR = 3.0  # at least, for four times the steps


def iteration(mode: str, steps: int) -> float:
    """Peak memory of an iteration, MB."""
    import torch
    from torch.nn.functional import cross_entropy

    from kdzoo.callbacks import Cost
    from kdzoo.dataset.networks import make
    from kdzoo.trajectories.flat import Flat, flatten
    from kdzoo.trajectories.unroll import unroll

    torch.manual_seed(0)
    network = make("convnet", {"channels": 1, "image_size": [28, 28], "classes": 10}, width=32)
    start, student = flatten(network), Flat(network)
    target = start + 0.01 * torch.randn_like(start)
    images, labels = torch.randn(100, 1, 28, 28, requires_grad=True), torch.arange(10).repeat(10)
    rate = torch.tensor(0.01, requires_grad=True)

    def loss(parameters: torch.Tensor, step: int, images: torch.Tensor) -> torch.Tensor:
        return cross_entropy(student(parameters, images), labels)

    cost = Cost(every=0.002)
    (end,) = unroll(loss, start, rate, (images,), steps, mode=mode)  # type: ignore[arg-type]
    torch.autograd.grad(((end - target) ** 2).sum(), (images, rate))
    return cost.stop()["peak_mb"]


def main() -> int:
    """Measure each in a process, print, and say whether all bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("MODE", "STEPS"), help="measure this one in this process")
    options = parser.parse_args()
    if options.one:
        print(iteration(options.one[0], int(options.one[1])))
        return 0
    peaks: dict[str, dict[str, float]] = {}
    for mode in MODES:
        for steps in STEPS:
            command = [sys.executable, __file__, "--one", mode, str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.setdefault(mode, {})[str(steps)] = float(done.stdout)
    ratios = {mode: round(found[str(STEPS[1])] / found[str(STEPS[0])], 3) for mode, found in peaks.items()}
    holds = {mode: ratio >= LINEAR if mode == "full" else ratio < CONSTANT for mode, ratio in ratios.items()}
    table = Table(box=None, pad_edge=False)
    for column in ("", *(f"{steps} steps, MB" for steps in STEPS), "ratio", ""):
        table.add_column(column)
    for mode, found in peaks.items():
        verdict = "holds" if holds[mode] else "not reached"
        table.add_row(mode, *(f"{mb:.1f}" for mb in found.values()), f"{ratios[mode]:.2f}", verdict)
    Console(width=100).print(table)
    if options.json:
        record = {"ratios": ratios, "peak_mb": peaks, "passed": all(holds.values())}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
