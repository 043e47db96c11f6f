"""What an iteration of dc and of dm costs, against the published loops on the same data, network and settings.

    python tests/bench/condensation.py --reference DatasetCondensation [--rounds 5] [--json FILE]

DatasetCondensation is a checkout of github.com/VICO-UoE/DatasetCondensation: its networks, its distance and its
training epoch are used as they are, in the order of its main programs, without augmentation (theirs does not run on a
torch of today). Arms are interleaved in one process, round by round; the ratio is that of the median CPU-seconds. Also
measured is what no loop can avoid: `convolution` is the time of our convolutions alone over that of the reference.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.ndimage
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from kdzoo.dataset.augment import NONE
from kdzoo.dataset.dc import DC
from kdzoo.dataset.distiller import Distiller
from kdzoo.dataset.dm import DM
from kdzoo.dataset.real_images import RealImages

MOST = 0.7  # of the reference's CPU-seconds, for dc
SPEC = {"modality": "image", "classes": 10, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.35]}
CASES = (("dc", 1, 32), ("dc", 1, 128), ("dc", 10, 32), ("dm", 1, 32))  # method, ipc, width
REAL = 64  # real images of each class in an iteration
LOOPS = (2, 5)  # for ten images per class: fewer than the authors', which only repeat themselves


@dataclass
class Case:
    """One setting, for both sides."""

    method: str
    ipc: int
    width: int

    @property
    def loops(self) -> tuple[int, int]:
        return (1, 1) if self.ipc == 1 else LOOPS


def ours(case: Case, real: RealImages) -> Callable[[], Any]:
    """An iteration of a method of kdzoo, without a Trainer around it."""
    shared: dict[str, Any] = {"ipc": case.ipc, "batch_real": REAL, "width": case.width}
    dm = case.method == "dm"
    method: Distiller = DM(**shared, augmentation=NONE) if dm else DC(**shared, init="real", loops=case.loops)
    method.build_for(SPEC)
    method.real = real
    method.set_images(real.choose(case.ipc, 0))
    optimizer = method.configure_optimizers()
    method.optimizers = lambda: types.SimpleNamespace(optimizer=optimizer)  # type: ignore[method-assign]
    method.manual_backward = lambda loss, **options: loss.backward(**options)  # type: ignore[method-assign]

    def iteration() -> None:
        optimizer.zero_grad()
        method.distil_step({})
        optimizer.step()

    return iteration


def published(case: Case, images: torch.Tensor, labels: torch.Tensor, folder: Path) -> Callable[[], Any]:
    """An iteration of the authors' main programs, made of their functions."""
    sys.path.insert(0, str(folder))
    sys.modules["scipy.ndimage.interpolation"] = scipy.ndimage  # its old name
    utils, networks = importlib.import_module("utils"), importlib.import_module("networks")
    outer, inner = case.loops
    settings = types.SimpleNamespace(device="cpu", dis_metric="ours")
    rows = [(labels == label).nonzero()[:, 0] for label in range(10)]

    def draw(label: int, count: int) -> torch.Tensor:
        return images[rows[label][torch.randperm(len(rows[label]))[:count]]]

    synthetic = torch.cat([draw(label, case.ipc) for label in range(10)]).requires_grad_()
    targets = torch.arange(10).repeat_interleave(case.ipc)
    pixels = torch.optim.SGD([synthetic], lr=0.1, momentum=0.5)
    criterion = torch.nn.CrossEntropyLoss()

    def pair(label: int) -> list[torch.Tensor]:
        return [draw(label, REAL), synthetic[label * case.ipc : (label + 1) * case.ipc]]

    def iteration() -> None:
        network = networks.ConvNet(1, 10, case.width, 3, "relu", "instancenorm", "avgpooling", (28, 28))
        if case.method == "dm":
            network.requires_grad_(False)
            loss = torch.zeros(())
            for label in range(10):
                real, made = (network.features(each).flatten(1).mean(0) for each in pair(label))
                loss += ((real.detach() - made) ** 2).sum()
            pixels.zero_grad()
            loss.backward()
            pixels.step()
            return
        weights = list(network.parameters())
        sgd = torch.optim.SGD(weights, lr=0.01)
        for update in range(outer):
            loss = torch.zeros(())
            for label in range(10):
                real, made = pair(label)
                target = torch.full((REAL,), label)
                wanted = torch.autograd.grad(criterion(network(real), target), weights)
                found = torch.autograd.grad(criterion(network(made), target[: case.ipc]), weights, create_graph=True)
                loss += utils.match_loss(found, [each.detach().clone() for each in wanted], settings)
            pixels.zero_grad()
            loss.backward()
            pixels.step()
            if update == outer - 1:
                break
            data = utils.TensorDataset(synthetic.detach().clone(), targets.clone())
            loader = torch.utils.data.DataLoader(data, batch_size=256, shuffle=True)
            for _ in range(inner):
                utils.epoch("train", loader, network, sgd, criterion, settings, aug=False)

    return iteration


def convolution_seconds(iteration: Callable[[], Any]) -> float:
    """CPU-seconds of the convolutions of an iteration."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        iteration()
    names = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::_slow_conv2d_forward")
    return sum(each.self_cpu_time_total for each in seen.key_averages() if each.key in names) / 1e6


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (10 * 100, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(10).repeat_interleave(100)
    real, normalised = RealImages(pixels, labels, [str(label) for label in range(10)]), (pixels / 255 - 0.3) / 0.35
    table = Table("case", "kdzoo, s", "reference, s", "ratio", "convolution", box=None)
    results = []
    for case in (Case(*each) for each in CASES):
        arms = {"kdzoo": ours(case, real), "reference": published(case, normalised, labels, options.reference)}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(options.rounds + 1):  # the first round warms up
            for name, iteration in arms.items():
                start = time.process_time()
                iteration()
                if number:
                    seconds[name].append(time.process_time() - start)
        mine, theirs = (statistics.median(seconds[name]) for name in ("kdzoo", "reference"))
        share = convolution_seconds(arms["kdzoo"]) / theirs
        name = f"{case.method}, {case.ipc} per class, width {case.width}"
        table.add_row(name, *(f"{value:.3f}" for value in (mine, theirs, mine / theirs, share)))
        numbers = {"kdzoo": mine, "reference": theirs, "ratio": mine / theirs, "convolution": share}
        results.append({"case": name, **{key: round(value, 4) for key, value in numbers.items()}})
    Console().print(table)
    passed = all(result["ratio"] <= MOST for result in results if result["case"].startswith("dc,"))
    print(f"dc at most {MOST} x the reference: {'passed' if passed else 'not reached'}")
    if options.json:
        ratios = {result["case"]: result["ratio"] for result in results}
        options.json.write_text(json.dumps({"ratios": ratios, "results": results, "passed": passed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
