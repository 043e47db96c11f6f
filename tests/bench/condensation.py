"""What an iteration of dc, dm and mtt costs, against the published loops on the same data, network and settings.

    python tests/bench/condensation.py --condensation DatasetCondensation --trajectories mtt-distillation [--json FILE]

The folders are checkouts of github.com/VICO-UoE/DatasetCondensation and github.com/GeorgeCazenavette/mtt-distillation:
their networks, distance, training epoch and flat parameters are used as they are, in the order of their main programs,
without augmentation (theirs does not run on a torch of today). Without a folder its cases are left out. Arms are
interleaved in one process, round by round; the ratio is that of the median CPU-seconds. Also measured is what no loop
can avoid: `convolution` is the time of our convolutions alone over that of the reference. An iteration of ftd is one of
mtt and an average of the images.
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
from kdzoo.dataset.matching import InnerLoop, Segment
from kdzoo.dataset.mtt import MTT
from kdzoo.dataset.real_images import RealImages

MOST = 0.7  # of the reference's CPU-seconds, for dc and mtt
SPEC = {"modality": "image", "classes": 10, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.35]}
# method, ipc, width
CONDENSATION = (("dc", 1, 32), ("dc", 1, 128), ("dc", 10, 32), ("dm", 1, 32))
TRAJECTORIES = (("mtt", 1, 32), ("mtt", 1, 128), ("mtt", 10, 32))
REAL = 64  # real images of each class in an iteration
LOOPS = (2, 5)  # for ten images per class: fewer than the authors', which only repeat themselves
STEPS, BATCH = 10, 100  # of the inner loop of mtt


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
    shared: dict[str, Any] = {"ipc": case.ipc, "width": case.width}
    method: Distiller
    if case.method == "mtt":
        method = MTT(**shared, zca=False, inner=InnerLoop(STEPS, BATCH, augmentation=NONE))
    elif case.method == "dm":
        method = DM(**shared, batch_real=REAL, augmentation=NONE)
    else:
        method = DC(**shared, batch_real=REAL, init="real", loops=case.loops)
    method.build_for(SPEC)
    method.real = real
    method.set_images(real.choose(case.ipc, 0))
    if isinstance(method, MTT):
        method.draw_segment = lambda: Segment(0, 0, pair(method.student.size))  # type: ignore[method-assign]
    optimizer = method.configure_optimizers()
    method.optimizers = lambda: types.SimpleNamespace(optimizer=optimizer)  # type: ignore[method-assign]
    method.manual_backward = lambda loss, **options: loss.backward(**options)  # type: ignore[method-assign]

    def iteration() -> None:
        optimizer.zero_grad()
        method.distil_step({})
        optimizer.step()

    return iteration


def pair(parameters: int) -> torch.Tensor:
    """Where a piece of a trajectory starts and ends: which values these are costs nothing."""
    return 0.05 * torch.randn(2, parameters, generator=torch.Generator().manual_seed(0))


def authors(folder: Path, *names: str) -> list[Any]:
    """Modules of a checkout, and not those of the same names of another."""
    sys.modules["scipy.ndimage.interpolation"] = scipy.ndimage  # its old name
    for name in names:
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    modules = [importlib.import_module(name) for name in names]
    sys.path.pop(0)
    return modules


def published_trajectories(case: Case, images: torch.Tensor, labels: torch.Tensor, folder: Path) -> Callable[[], Any]:
    """An iteration of the authors' main program, made of their functions."""
    networks, reparam = authors(folder, "networks", "reparam_module")
    rows = [(labels == label).nonzero()[: case.ipc, 0] for label in range(10)]
    synthetic = images[torch.cat(rows)].clone().requires_grad_()
    targets = torch.arange(10).repeat_interleave(case.ipc)
    rate = torch.tensor(0.001, requires_grad=True)
    pixels = torch.optim.SGD([synthetic], lr=100.0, momentum=0.5)
    rates = torch.optim.SGD([rate], lr=1e-5, momentum=0.5)
    criterion = torch.nn.CrossEntropyLoss()

    def iteration() -> None:
        student = networks.ConvNet(1, 10, case.width, 3, "relu", "instancenorm", "avgpooling", (28, 28))
        student = reparam.ReparamModule(student)
        student.train()
        start, target = pair(student.param_numel)
        walk, chunks = [start.clone().requires_grad_()], list[torch.Tensor]()
        for _ in range(STEPS):
            chunks = chunks or list(torch.randperm(len(synthetic)).split(BATCH))
            chosen = chunks.pop()
            loss = criterion(student(synthetic[chosen], flat_param=walk[-1]), targets[chosen])
            walk.append(walk[-1] - rate * torch.autograd.grad(loss, walk[-1], create_graph=True)[0])
        distance = torch.nn.functional.mse_loss(walk[-1], target, reduction="sum")
        whole = torch.nn.functional.mse_loss(start, target, reduction="sum")
        pixels.zero_grad()
        rates.zero_grad()
        (distance / whole).backward()
        pixels.step()
        rates.step()

    return iteration


def published(case: Case, images: torch.Tensor, labels: torch.Tensor, folder: Path) -> Callable[[], Any]:
    """An iteration of the authors' main programs, made of their functions."""
    utils, networks = authors(folder, "utils", "networks")
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
    parser.add_argument("--condensation", type=Path)
    parser.add_argument("--trajectories", type=Path)
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
    cases = [(case, published, options.condensation) for case in CONDENSATION if options.condensation]
    cases += [(case, published_trajectories, options.trajectories) for case in TRAJECTORIES if options.trajectories]
    for case, theirs_of, folder in [(Case(*case), function, folder) for case, function, folder in cases]:
        arms = {"kdzoo": ours(case, real), "reference": theirs_of(case, normalised, labels, folder)}
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
    passed = all(result["ratio"] <= MOST for result in results if not result["case"].startswith("dm,"))
    print(f"dc and mtt at most {MOST} x the reference: {'passed' if passed else 'not reached'}")
    if options.json:
        ratios = {result["case"]: result["ratio"] for result in results}
        options.json.write_text(json.dumps({"ratios": ratios, "results": results, "passed": passed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
