"""Steps per CPU-second of knowledge distillation in other frameworks and in kdzoo, and of kdzoo's methods.

    python tests/bench/peers.py [--blocks peers logits features memories] [--rounds 5] [--steps 30] [--json FILE]

The pair is ResNet-56 -> ResNet-20 at 16 pixels. Every arm has the same batches and SGD, in one plain loop; arms are
interleaved in one process, a ratio is the median over the rounds. Run it on an idle machine.

- peers: torchdistill and modelopt, installed into a temporary folder, and timm, all with the same student from the same
  weights and 0.1 CE + 0.9 KD at temperature 4; kdzoo with a filled store is to be the fastest.
- logits: every method on logits with a filled store, at least 0.9 of the speed of its student alone. quant_distill also
  rounds the student's weights in each step, and ofa_kd trains exits, which no store can make cheaper.
- features: what a teacher costs that stops at the deepest tap, and one that does not.
- memories: methods that remember every sample take at most 1.15 of the time of their parts.
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
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from rich.console import Console
from rich.table import Table
from store import OPTIM, VIEWS, Small, paired  # the script beside this one
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from kdzoo.console import console as said
from kdzoo.console import quieten
from kdzoo.export.image import export_image_network
from kdzoo.image.at import AT
from kdzoo.image.crd import CRD
from kdzoo.image.deit_token import DeiTToken
from kdzoo.image.dist import DIST
from kdzoo.image.dkd import DKD
from kdzoo.image.fitnet import FitNet
from kdzoo.image.kd import KD
from kdzoo.image.lelp import LELP
from kdzoo.image.ls_kd import LSKD
from kdzoo.image.meal_v2 import MEALV2
from kdzoo.image.nkd import NKD
from kdzoo.image.ofa_kd import OFAKD
from kdzoo.image.ps_kd import PSKD
from kdzoo.image.quant_distill import QuantDistill
from kdzoo.image.ssld import SSLD
from kdzoo.losses.features import noise_contrast
from kdzoo.losses.logits import kd
from kdzoo.students.build import build
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import Teacher

TEMPERATURE, CE, SOFT = 4.0, 0.1, 0.9
PACKAGES = ["torchdistill", "pyyaml", "nvidia-modelopt", "omegaconf", "antlr4-python3-runtime", "pulp", "pydantic",
            "pydantic-core", "annotated-types", "typing-inspection", "nvidia-ml-py", "ninja", "regex"]  # fmt: skip
Step = Callable[[dict[str, Tensor]], Tensor]
Start = Callable[[], tuple[Step, Iterable[nn.Parameter], list[Any]]]  # makes a step, what it trains, and its batches
WARM = 3  # steps before the clock
BLOCKS = ("peers", "logits", "features", "memories")

STUDENT, TOKENS = "cifar_resnet20", "deit_48x4_patch4_28"
# A store is of the images as they are.
PLAIN = {"rand_augment": 0.0, "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
LOGITS: dict[str, tuple[Any, dict[str, Any]]] = {
    "kd": (KD, {}),
    "dkd": (DKD, {}),
    "nkd": (NKD, {}),
    "dist": (DIST, {}),
    "ls_kd": (LSKD, {}),
    "ls_kd of dkd": (LSKD, {"base": "dkd"}),
    "lelp": (LELP, {}),
    "ssld": (SSLD, {}),
    "meal_v2": (MEALV2, {}),
    "quant_distill": (QuantDistill, {}),
    "ofa_kd": (OFAKD, {}),
    "deit_token": (DeiTToken, {"student": TOKENS, **PLAIN}),
}
FEATURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "fitnet, stage 1": (FitNet, {"student_tap": "1", "teacher_tap": "1"}),
    "fitnet, stage 2": (FitNet, {"student_tap": "2", "teacher_tap": "2"}),
    "at, stages 1 and 2": (AT, {"student_taps": ("1", "2"), "teacher_taps": ("1", "2")}),
}
NEGATIVES, WIDTH = 1024, 128  # of crd


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


PEERS = {"torchdistill": torchdistill, "timm.task": timm, "modelopt": modelopt}
EQUAL = ("kdzoo, stored", "kdzoo, live", *PEERS)  # arms that do the same


def bare_step(make: Callable[[nn.Module, Any], Step], first: nn.Module, teacher: Any, batches: list[Any]) -> Any:
    """A `Start` of one of the functions above, from the same weights each time."""
    student = copy.deepcopy(first).train()
    return make(student, teacher if make is ours else copy.deepcopy(teacher)), student.parameters(), batches


def method_step(cls: Any, arguments: dict[str, Any], teacher: Any, export: str, spec: Any, batches: list[Any]) -> Any:
    """A `Start` of a method of kdzoo's as it is early in a run, with this teacher."""
    early = type(cls.__name__, (cls,), {"progress": 0.1, "global_step": 1, "current_epoch": 1, "epochs": 10})
    given = {"student": STUDENT, **({} if cls is PSKD else {"teacher": Teacher(checkpoint=export)}), **arguments}
    method = early(**given)
    method.build_for(spec)
    if cls is MEALV2:
        method.experts = nn.ModuleList([teacher, teacher])
    elif cls is not PSKD:
        method.teacher = teacher
    if cls is LELP:
        method.directions.normal_()  # what a fit would find: as many numbers
    method.train()

    def step(batch: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(method.losses(batch).values())).sum()

    return step, [parameter for parameter in method.parameters() if parameter.requires_grad], batches


class Whole(FrozenTeacher):
    """A teacher that runs to its end, whatever is asked of it."""

    def features(self, batch: dict[str, Tensor], taps: Any) -> dict[str, Tensor]:
        """Look at the logits too."""
        return super().features(batch, list(dict.fromkeys([*taps, "logits"])))


def contrast_step(samples: int, width: int, batches: list[Any]) -> Any:
    """A `Start` of the arithmetic of crd by itself, on features of nobody: two embeddings, contrasts and memories."""
    size = len(batches[0]["index"])
    features = torch.randn(2, size, width, requires_grad=True)
    embeds = nn.ModuleList(nn.Linear(width, WIDTH) for _ in range(2))
    memories = [normalize(torch.randn(samples, WIDTH), dim=1) for _ in range(2)]

    def step(batch: dict[str, Tensor]) -> Tensor:
        index = batch["index"]
        rows = torch.cat([index[:, None], torch.randint(samples, (size, NEGATIVES))], dim=1)
        embedded = [normalize(embed(feature), dim=1) for embed, feature in zip(embeds, features)]
        loss = torch.zeros(())
        for side in (0, 1):
            scores = torch.einsum("bd,bkd->bk", embedded[side], memories[1 - side][rows]).div(0.07).exp()
            loss = loss + noise_contrast(scores / samples, samples)
        for memory, now in zip(memories, embedded):
            memory[index] = normalize(0.5 * memory[index] + 0.5 * now.detach(), dim=1)
        return loss

    return step, embeds.parameters(), batches


def main() -> int:
    """Run, print, and say whether all bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    said.quiet = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "peers" in options.blocks:
            install(folder / "peers")
        os.environ["KDZOO_CACHE"] = str(folder / "cache")
        data = Small(views=VIEWS)
        export = str(folder / "teacher")
        export_image_network(build("cifar_resnet56", data.spec), data.spec, folder / "teacher")
        kept = Teacher(checkpoint=export, store="fp32", views=1, outputs=("logits", "pre_logits"))
        method = KD(student=STUDENT, teacher=kept)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **quiet).fit(method, datamodule=Small())
        stored, live = method.teacher, method.teacher.networks[0]
        first = build(STUDENT, data.spec)

        batches = []
        for batch in Small(views=1).train_dataloader():
            batches.append(data.prepare(stored.with_stored(batch), augment=True))
            if len(batches) == options.steps:
                break
        bare = [{key: batch[key] for key in ("image", "label", "index", "view")} for batch in batches]
        on = partial(method_step, export=export, spec=data.spec)
        arms: dict[str, Start] = {"student alone": partial(bare_step, alone, first, live, bare)}
        if "peers" in options.blocks:
            arms["kdzoo, stored"] = partial(bare_step, ours, first, stored, batches)
            arms["kdzoo, live"] = partial(bare_step, ours, first, stored, bare)
            for name, peer in PEERS.items():
                arms[name] = partial(bare_step, peer, first, live, bare)
        if "logits" in options.blocks:
            arms[f"{TOKENS} alone"] = partial(bare_step, alone, build(TOKENS, data.spec), live, bare)
            arms |= {name: partial(on, *how, teacher=stored, batches=batches) for name, how in LOGITS.items()}
        if "features" in options.blocks:
            for name, how in FEATURES.items():
                arms[name] = partial(on, *how, teacher=FrozenTeacher([live]), batches=bare)
                arms[f"{name}, whole teacher"] = partial(on, *how, teacher=Whole([live]), batches=bare)
        if "memories" in options.blocks:
            bank = {"negatives": NEGATIVES, "width": WIDTH}
            arms["ps_kd"] = partial(on, PSKD, {}, teacher=None, batches=bare)
            arms["crd"] = partial(on, CRD, bank, teacher=stored, batches=batches)
            arms["the contrast alone"] = partial(contrast_step, data.samples, first.network.num_features, bare)
        rates: dict[str, list[float]] = {arm: [] for arm in arms}
        losses: dict[str, list[float]] = {}
        for number in range(options.rounds):
            for arm in list(arms)[:: 1 if number % 2 == 0 else -1]:
                losses[arm], rate = run(arms[arm])
                rates[arm].append(rate)
    ratios, bounds = compared(rates)
    alike = {arm: max(abs(a - b) for a, b in zip(losses[arm], losses["kdzoo, live"])) for arm in rates if arm in EQUAL}
    table = Table(box=None, pad_edge=False)
    for column in ("", "steps per CPU-second", "first losses differ by"):
        table.add_column(column)
    for arm, values in rates.items():
        table.add_row(arm, f"{statistics.median(values):.1f}", f"{alike[arm]:.1e}" if arm in alike else "")
    for label, value in ratios.items():
        verdict = "" if label not in bounds else "holds" if bounds[label](value) else "not reached"
        table.add_row(label, f"{value:.3f}", verdict)
    Console(width=110).print(table)
    passed = all(holds(ratios[label]) for label, holds in bounds.items())
    if options.json:
        steps = {arm: statistics.median(values) for arm, values in rates.items()}
        record = {"ratios": ratios, "losses_differ_by": alike, "steps_per_cpu_second": steps, "passed": passed}
        options.json.write_text(json.dumps(record, indent=1))
    return 0 if passed else 1


def compared(rates: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, Callable[[float], bool]]]:
    """The ratios of all arms that were run, and the bounds on some of them."""
    ratios = {f"{arm} / student alone": paired(rates, arm, "student alone") for arm in rates if arm in EQUAL}
    bounds: dict[str, Callable[[float], bool]] = {}
    for peer in PEERS if "modelopt" in rates else ():
        ratios[f"kdzoo, stored / {peer}"] = paired(rates, "kdzoo, stored", peer)
        bounds[f"kdzoo, stored / {peer}"] = lambda value: value > 1
    for method in LOGITS:
        if method in rates:
            base = f"{TOKENS} alone" if method == "deit_token" else "student alone"
            ratios[f"{method}, stored / {base}"] = paired(rates, method, base)
            bounds[f"{method}, stored / {base}"] = lambda value: value >= 0.9
    for method in FEATURES:
        if method in rates:
            ratios[f"{method} / student alone"] = paired(rates, method, "student alone")
            ratios[f"{method}: teacher to the tap / whole"] = paired(rates, method, f"{method}, whole teacher")
            bounds[f"{method}: teacher to the tap / whole"] = lambda value: value > 1
    if "crd" in rates:
        ratios["ps_kd: seconds / student alone's"] = paired(rates, "student alone", "ps_kd")
        rounds = zip(rates["crd"], rates["student alone"], rates["the contrast alone"], strict=True)
        parts = [(1 / whole) / (1 / student + 1 / contrast) for whole, student, contrast in rounds]
        ratios["crd: seconds / student's and contrast's"] = statistics.median(parts)
        bounds |= {label: lambda value: value <= 1.15 for label in ratios if "seconds" in label}
    return ratios, bounds


def run(start: Start) -> tuple[list[float], float]:
    """One training: the first ten losses, and steps per CPU-second."""
    step, parameters, batches = start()
    optimizer = torch.optim.SGD(parameters, OPTIM.lr, momentum=0.9)
    losses = []
    for number, batch in enumerate(batches):
        if number == WARM:
            begin = time.process_time()
        loss = step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    rate = (len(batches) - WARM) / (time.process_time() - begin)
    return [float(loss) for loss in losses[:10]], rate


if __name__ == "__main__":
    sys.exit(main())
