"""Steps per CPU-second of knowledge distillation in other frameworks and in kdzoo, on the same batches.

    python tests/bench/peers.py [--rounds 5] [--steps 30] [--json FILE]

torchdistill and modelopt are installed into a temporary folder; timm is there. All have the same teacher, the same
student from the same weights, the same batches, SGD, and 0.1 CE + 0.9 KD at temperature 4, in one plain loop; arms are
interleaved in one process. Run it on an idle machine.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from rich.console import Console
from rich.table import Table
from store import OPTIM, VIEWS, Small, paired  # the script beside this one
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.console import console as said
from kdzoo.console import quieten
from kdzoo.export.image import export_image_network
from kdzoo.image.kd import KD
from kdzoo.losses.logits import kd
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher

TEMPERATURE, CE, SOFT = 4.0, 0.1, 0.9
PACKAGES = ["torchdistill", "pyyaml", "nvidia-modelopt", "omegaconf", "antlr4-python3-runtime", "pulp", "pydantic",
            "pydantic-core", "annotated-types", "typing-inspection", "nvidia-ml-py", "ninja", "regex"]  # fmt: skip
Step = Callable[[dict[str, Tensor]], Tensor]


def install(folder: Path) -> None:
    """Install the peers without what kdzoo has already."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    subprocess.run(command, check=True)
    sys.path.append(str(folder))


def torchdistill(student: nn.Module, teacher: nn.Module) -> Step:
    """Its DistillationBox."""
    import torchdistill.core.interfaces.forward_proc
    import torchdistill.losses.high_level
    import torchdistill.losses.mid_level
    import torchdistill.losses.util  # noqa: F401 - these register what the config names
    from torchdistill.core.distillation import DistillationBox

    paths = {f"{who}_module_path": "network" for who in ("student", "teacher")}
    sides = {f"{who}_module_io": "output" for who in ("student", "teacher")}
    options = {"temperature": TEMPERATURE, "alpha": CE, "reduction": "batchmean"}  # its alpha is the labels' weight
    term = {"criterion": {"key": "KDLoss", "kwargs": {**paths, **sides, **options}}, "weight": 1.0}
    side = {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": ["network"]}}
    config = {
        "num_epochs": 1,
        "teacher": {**side, "requires_grad": False},
        "student": side,
        "optimizer": {"key": "SGD", "kwargs": {"lr": OPTIM.lr}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
    }
    box = DistillationBox(teacher, student, {}, config, torch.device("cpu"), None, False, 1.0, None)
    teacher.eval()
    return lambda batch: box.forward_process(batch["image"], batch["label"], None)


def timm(student: nn.Module, teacher: nn.Module) -> Step:
    """Its LogitDistillationTask; both networks normalise themselves."""
    from timm.task import LogitDistillationTask

    for network in (student, teacher):
        network.num_classes, network.in_chans = 10, 1  # type: ignore[assignment]
        network.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}  # type: ignore[assignment]
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=SOFT,
        task_loss_weight=CE,
        temperature=TEMPERATURE,
        verbose=False,
    )
    return lambda batch: task(batch["image"], batch["label"])["loss"]


def modelopt(student: nn.Module, teacher: nn.Module) -> Step:
    """Its distillation mode."""
    import modelopt.torch.distill as mtd

    config = {
        "teacher_model": teacher,
        "criterion": mtd.LogitsDistillationLoss(temperature=TEMPERATURE, reduction="batchmean"),
        "loss_balancer": mtd.StaticLossBalancer(kd_loss_weight=SOFT),
    }
    converted = mtd.convert(student, mode=[("kd_loss", config)])
    converted.train()

    def step(batch: dict[str, Tensor]) -> Tensor:
        logits = converted(batch["image"])
        return converted.compute_kd_loss(student_loss=cross_entropy(logits, batch["label"]))

    return step


def ours(student: nn.Module, teacher: Any) -> Step:
    """kdzoo, with a store if the teacher has one."""

    def step(batch: dict[str, Tensor]) -> Tensor:
        logits = student(batch["image"])
        return CE * cross_entropy(logits, batch["label"]) + SOFT * kd(logits, teacher(batch), TEMPERATURE)

    return step


def alone(student: nn.Module, teacher: nn.Module) -> Step:
    """The student on the labels."""
    return lambda batch: cross_entropy(student(batch["image"]), batch["label"])


def main() -> int:
    """Run, print, and say whether kdzoo with a store is the fastest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    said.quiet = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(folder / "peers")
        os.environ["KDZOO_CACHE"] = str(folder / "cache")
        data = Small(views=VIEWS)
        export_image_network(build("cifar_resnet56", data.spec), data.spec, folder / "teacher")
        method = KD(
            student="cifar_resnet20", teacher=Teacher(checkpoint=str(folder / "teacher"), store="fp32", views=1)
        )
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **quiet).fit(method, datamodule=Small())
        stored, live = method.teacher, method.teacher.networks[0]
        first = build("cifar_resnet20", data.spec)

        batches = []
        for batch in Small(views=1).train_dataloader():
            batches.append(data.prepare(stored.with_stored(batch), augment=True))
            if len(batches) == options.steps:
                break
        bare = [{key: batch[key] for key in ("image", "label", "index", "view")} for batch in batches]
        arms: dict[str, tuple[Callable[[nn.Module, Any], Step], Any, list[Any]]] = {
            "student alone": (alone, live, bare),
            "kdzoo, stored": (ours, stored, batches),
            "kdzoo, live": (ours, stored, bare),
            "torchdistill": (torchdistill, live, bare),
            "timm.task": (timm, live, bare),
            "modelopt": (modelopt, live, bare),
        }
        rates: dict[str, list[float]] = {arm: [] for arm in arms}
        losses: dict[str, list[float]] = {}
        for number in range(options.rounds):
            for arm in list(arms)[:: 1 if number % 2 == 0 else -1]:
                make, teacher, given = arms[arm]
                losses[arm], rate = run(make, first, teacher, given)
                rates[arm].append(rate)
    alike = {arm: max(abs(a - b) for a, b in zip(losses[arm], losses["kdzoo, live"])) for arm in list(arms)[1:]}
    ratios = {arm: paired(rates, arm, "student alone") for arm in arms}
    peers = ("torchdistill", "timm.task", "modelopt")
    ratios |= {f"kdzoo, stored / {peer}": paired(rates, "kdzoo, stored", peer) for peer in peers}
    table = Table(box=None, pad_edge=False)
    for column in ("", "steps per CPU-second", "/ student alone", "first losses differ by"):
        table.add_column(column)
    for arm, values in rates.items():
        differ = f"{alike[arm]:.1e}" if arm in alike else ""
        table.add_row(arm, f"{statistics.median(values):.1f}", f"{ratios[arm]:.3f}", differ)
    Console(width=100).print(table)
    passed = all(ratios[f"kdzoo, stored / {peer}"] > 1 for peer in peers)
    if options.json:
        record = {"ratios": ratios, "losses_differ_by": alike, "passed": passed}
        options.json.write_text(json.dumps(record, indent=1))
    return 0 if passed else 1


def run(
    make: Callable[[nn.Module, Any], Step], first: nn.Module, teacher: Any, batches: list[Any]
) -> tuple[list[float], float]:
    """One training over `batches`: the first ten losses, and steps per CPU-second."""
    student = copy.deepcopy(first).train()
    step = make(student, teacher if make is ours else copy.deepcopy(teacher))
    optimizer = torch.optim.SGD(student.parameters(), OPTIM.lr, momentum=0.9)
    losses, begin = [], time.process_time()
    for batch in batches:
        loss = step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    rate = len(batches) / (time.process_time() - begin)
    return [float(loss) for loss in losses[:10]], rate


if __name__ == "__main__":
    sys.exit(main())
