"""What the store is worth: steps per second of a student alone, with a live teacher, and with a stored one.

    python tests/bench/store.py [--rounds 7] [--steps 40] [--json FILE]

A ResNet-56 teaches a ResNet-20 on 16-pixel images. Arms are interleaved in one process, round by round; a ratio is the
median over the rounds. Then the first run (the store filled on the way) against a live one, and the memory and the
bytes written when a store grows by a gigabyte. Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch.nn.functional import interpolate

from kdzoo.callbacks import Cost
from kdzoo.console import console as said
from kdzoo.console import quieten
from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.datamodules.image_data import Samples
from kdzoo.export.image import export_image_network
from kdzoo.image.kd import KD
from kdzoo.image.supervised import Supervised
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher

SIZE, BATCH, VIEWS, WARM = 16, 64, 4, 5
OPTIM = Optim(lr=0.05)


class Small(FashionMNIST):
    """Fashion-MNIST at 16 pixels."""

    def __init__(self, **options: Any) -> None:
        super().__init__(batch_size=BATCH, **options)
        self.image_size = (SIZE, SIZE)

    def load(self) -> tuple[Samples, Samples]:
        """Shrink the images."""
        self.image_size = (28, 28)
        parts = super().load()
        self.image_size = (SIZE, SIZE)
        for part in parts:
            part.images = interpolate(part.images.float(), (SIZE, SIZE), mode="area").round().to(torch.uint8)
        return parts


class Clock(Callback):
    """Steps per second after the first few."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        if trainer.global_step == WARM:
            self.begin = time.perf_counter()
        self.rate = (
            (trainer.global_step - WARM) / (time.perf_counter() - self.begin) if trainer.global_step > WARM else 0
        )


def trainer(**options: Any) -> Trainer:
    """A Trainer that does nothing but train."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **quiet, **options)


def lightning_rate(make: Callable[[], Any], steps: int) -> float:
    """Steps per second through the Trainer."""
    seed_everything(0, verbose=False)
    clock = Clock()
    trainer(max_steps=steps, max_epochs=-1, callbacks=[clock]).fit(make(), datamodule=Small(views=VIEWS))
    return clock.rate


def plain_rate(teacher: Any, steps: int) -> float:
    """Steps per second of a loop of one's own; `teacher`: None, or a FrozenTeacher with or without a store."""
    seed_everything(0, verbose=False)
    data = Small(views=VIEWS)
    student = build("cifar_resnet20", data.spec).train()
    optimizer = torch.optim.SGD(student.parameters(), OPTIM.lr, momentum=0.9)
    for step, batch in enumerate(data.train_dataloader()):
        if step == WARM:
            begin = time.perf_counter()
        if teacher is not None:
            batch = teacher.with_stored(batch)
        batch = data.prepare(batch, augment=True)
        logits = student(batch["image"])
        loss = labelled_cross_entropy(logits, batch["label"])
        if teacher is not None:
            loss = 0.1 * loss + 0.9 * kd(logits, teacher(batch), 4.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 == steps:
            break
    return (steps - WARM) / (time.perf_counter() - begin)


def speeds(folder: Path, rounds: int, steps: int) -> dict[str, list[float]]:
    """Steps per second of every arm, a value per round."""
    export = str(folder / "teacher")

    def method(**options: Any) -> KD:
        return KD(student="cifar_resnet20", teacher=Teacher(checkpoint=export, **options), optim=OPTIM)

    def stored() -> KD:
        return method(store="fp16", views=VIEWS)

    filled = stored()  # its teacher has the store that all others find
    trainer(max_steps=1, max_epochs=VIEWS).fit(filled, datamodule=Small(views=VIEWS))
    trainer(max_epochs=VIEWS, limit_train_batches=1).fit(filled, datamodule=Small(views=VIEWS))
    live = method()
    trainer(max_steps=1).fit(live, datamodule=Small(views=VIEWS))
    arms: dict[str, Callable[[], float]] = {
        "student alone": lambda: lightning_rate(lambda: Supervised(student="cifar_resnet20", optim=OPTIM), steps),
        "live": lambda: lightning_rate(method, steps),
        "stored": lambda: lightning_rate(stored, steps),
        "plain, student alone": lambda: plain_rate(None, steps),
        "plain, live": lambda: plain_rate(live.teacher, steps),
        "plain, stored": lambda: plain_rate(filled.teacher, steps),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        order = list(arms) if number % 2 == 0 else list(reversed(arms))
        for name in order:
            found[name].append(arms[name]())
    return found


def first_run(folder: Path) -> float:
    """Seconds of a 20-epoch run that fills its store, over those of a live one; the smallest of two each."""
    seconds: dict[str, list[float]] = {"live": [], "stored": []}
    for repeat in range(2):
        for name in seconds:
            os.environ["KDZOO_CACHE"] = str(folder / f"first{repeat}{name}")
            options: dict[str, Any] = {"store": "fp16", "views": VIEWS} if name == "stored" else {}
            teacher = Teacher(checkpoint=str(folder / "teacher"), **options)
            seed_everything(0, verbose=False)
            method = KD(student="cifar_resnet20", teacher=teacher, optim=OPTIM)
            data = Small(views=VIEWS, labelled=640, unlabelled="drop")
            begin = time.perf_counter()
            trainer(max_epochs=20).fit(method, datamodule=data)
            seconds[name].append(time.perf_counter() - begin)
    return min(seconds["stored"]) / min(seconds["live"])


def memory(folder: Path) -> dict[str, float]:
    """Own memory at its peak, MB, and bytes written per byte kept, of fits with a small and with a 1 GB store."""
    written: list[int] = []
    pwrite = os.pwrite

    def counted(file: int, content: Any, offset: int) -> int:
        written.append(len(content))
        return pwrite(file, content, offset)

    export_image_network(build("cnn_14k", FashionMNIST().spec), FashionMNIST().spec, folder / "small")
    peaks = []
    os.pwrite = counted  # type: ignore[assignment]
    for views in (1, 1, 17):  # the first is for what the first fit of a process takes
        os.environ["KDZOO_CACHE"] = str(folder / f"memory{len(peaks)}")
        teacher = Teacher(checkpoint=str(folder / "small"), store="fp32", views=views, outputs=("logits", "0"))
        written.clear()
        cost = Cost()
        method = KD(student="cnn_14k", teacher=teacher)
        trainer(max_epochs=views, limit_train_batches=20).fit(method, datamodule=FashionMNIST(batch_size=128))
        peaks.append(cost.stop()["peak_mb"])
    os.pwrite = pwrite
    kept = sum(file.stat().st_size for file in (folder / "memory2").rglob("*.bin"))
    return {"store GB": kept / 1e9, "growth MB": peaks[2] - peaks[1], "written per byte": sum(written) / kept}


def main() -> int:
    """Run, print, and say whether all bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    said.quiet = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KDZOO_CACHE"] = str(folder / "cache")
        export_image_network(build("cifar_resnet56", Small().spec), Small().spec, folder / "teacher")
        rates = speeds(folder, options.rounds, options.steps)
        ratios = {
            "stored / student alone": paired(rates, "stored", "student alone"),
            "stored / live": paired(rates, "stored", "live"),
            "live / student alone": paired(rates, "live", "student alone"),
            "plain: stored / student alone": paired(rates, "plain, stored", "plain, student alone"),
            "Lightning / plain, student alone": paired(rates, "student alone", "plain, student alone"),
            "first run, stored / live seconds": first_run(folder),
            **memory(folder),
        }
    bounds: dict[str, Callable[[float], bool]] = {
        "stored / student alone": lambda value: value >= 0.92,
        "stored / live": lambda value: value >= 1.4,
        "first run, stored / live seconds": lambda value: value < 1,
        "growth MB": lambda value: value <= 100,
        "written per byte": lambda value: value == 1,
    }
    table = Table(box=None, pad_edge=False)
    for column in ("", "steps/s", "value", ""):
        table.add_column(column)
    for arm, values in rates.items():
        table.add_row(arm, f"{statistics.median(values):.1f}")
    for label, value in ratios.items():
        verdict = "" if label not in bounds else "holds" if bounds[label](value) else "not reached"
        table.add_row(label, "", f"{value:.3f}", verdict)
    Console(width=100).print(table)
    passed = all(holds(ratios[label]) for label, holds in bounds.items())
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, "steps_per_second": rates, "passed": passed}, indent=1))
    return 0 if passed else 1


def paired(rates: dict[str, list[float]], left: str, right: str) -> float:
    """The median over the rounds of a ratio."""
    return statistics.median(a / b for a, b in zip(rates[left], rates[right], strict=True))


if __name__ == "__main__":
    sys.exit(main())
