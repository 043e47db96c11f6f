"""What `test_ranks.py` runs in two processes (by torchrun) and in one; prints nothing, writes JSON.

torchrun --nproc-per-node 2 tests/ranks.py RESULT TEACHER
"""

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import group_norm

from kdzoo import registry
from kdzoo.console import quieten
from kdzoo.datamodules.debian_dependencies import DebianDependencies
from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.datamodules.mesh_scene import MeshScene
from kdzoo.datamodules.molecules import Molecules
from kdzoo.datamodules.provenance import Provenance
from kdzoo.datamodules.scenes import Scenes
from kdzoo.datamodules.sr_folder import SRFolder
from kdzoo.image.kd import KD
from kdzoo.image.memory import SampleMemory
from kdzoo.method import Method
from kdzoo.short_names import class_path
from kdzoo.teachers import fill, store
from kdzoo.teachers.sources import Teacher, untrained_teachers
from kdzoo.testing import make_method

STEPS, GLOBAL_BATCH = 8, 64
STUDENT = "test_efficientnet_ln"  # rounding does not grow in it as in one without norms per sample
CHANCE = (
    "rand_augment",
    "random_erasing",
    "mixup",
    "cutmix",
    "drop_path",
    "noise",
    "masked",
)  # drawn by each rank for itself


class Losses(Callback):
    """The mean over the ranks of each step's loss."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember."""
        self.found.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")))


def data(name: str = "fashion_mnist") -> LightningDataModule:
    """521 samples for an epoch of eight steps, 101 for the validation; or patches of photographs, and two of those."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if name == "debian_dependencies":
        return DebianDependencies(repeat=STEPS)  # every batch is the whole graph
    if name == "provenance":
        return Provenance(repeat=STEPS)
    if name == "molecules":
        return Molecules("solubility", count=652, validation=101, batch_size=GLOBAL_BATCH // world)
    if name == "scenes":
        return Scenes(size=32, scenes=521, validation=101, test=1, batch_size=GLOBAL_BATCH // world)
    if name == "mesh_scene":
        return MeshScene(size=24, views=6, test_views=1, validation=2, batch_size=GLOBAL_BATCH // world, batches=STEPS)
    if name == "sr_folder":
        return SRFolder(patch=24, validation=2, batch_size=GLOBAL_BATCH // 4 // world)
    return FashionMNIST(labelled=521, unlabelled="drop", validation=101, batch_size=GLOBAL_BATCH // world)


def run(method: Method, datamodule: LightningDataModule) -> dict[str, Any]:
    """Fit, validate, and say what came out."""
    losses = Losses()
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", 1)),
        strategy="ddp" if "WORLD_SIZE" in os.environ else "auto",
        logger=False,
        callbacks=[losses],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(method, datamodule=datamodule)
    scores = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
    total = sum(float(parameter.detach().double().sum()) for parameter in method.parameters())
    memories = [module.rows.tolist() for module in method.modules() if isinstance(module, SampleMemory)]
    return {"losses": losses.found, "scores": scores, "weights": everywhere(total), "memories": everywhere(memories)}


def everywhere(value: Any) -> list[Any]:
    """The values of all ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def methods() -> dict[str, Any]:
    """The tiny config of every method of kdzoo, made independent of how many ranks there are."""
    names = [name for name, entry in registry.entries(registry.METHODS).items() if entry.distribution == "kdzoo"]
    configs = {name: yaml.safe_load(registry.find_config(f"{name}_tiny").read_text()) for name in names}
    for name, config in configs.items():
        model = config["model"]
        model["class_path"] = class_path(registry.METHODS, name)
        arguments = inspect.signature(registry.find(registry.METHODS, name).load()).parameters
        model["init_args"] |= {argument: 0.0 for argument in CHANCE if argument in arguments}
        model["init_args"] |= {"coding": "fixed"} if "coding" in arguments else {}
        model["init_args"] |= {"outer": 2} if "outer" in model["init_args"] else {}
        if "sizes" in arguments:  # AdamW with an epsilon of nothing makes a step out of rounding
            model["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
        model["init_args"] |= {"dropout": 0.0, "norm": None} if "pool" in arguments else {}  # of graphs
        if model["init_args"].get("student") == "cnn_14k":
            model["init_args"]["student"] = STUDENT
    return configs


def every_method() -> dict[str, Any]:
    """Each method of kdzoo with its tiny config and an untrained teacher."""
    results = {}
    for name, settings in methods().items():
        seed_everything(0, verbose=False)
        with untrained_teachers():
            results[name] = run(make_method(settings), data(settings["data"]["class_path"]))
    return results


def with_store(teacher: str) -> dict[str, Any]:
    """`kd` with a store that the ranks fill together."""
    store.BLOCK = fill.BLOCK = 64  # so that there are blocks for all ranks
    written: list[int] = []
    pwrite = os.pwrite

    def counted(file: int, content: Any, offset: int) -> int:
        written.append(len(content))
        return pwrite(file, content, offset)

    os.pwrite = counted  # type: ignore[assignment]
    seed_everything(0, verbose=False)
    method = KD(student=STUDENT, teacher=Teacher(checkpoint=teacher, store="fp32", views=3))
    found = run(method, data())
    os.pwrite = pwrite
    return {**found, "written": everywhere(sum(written))}


def own_statistics(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """A norm without batch statistics, which are those of a rank, not of the global batch."""
    return group_norm(x, 1, self.weight, self.bias)


if __name__ == "__main__":
    quieten()
    nn.BatchNorm2d.forward = own_statistics  # type: ignore[method-assign]
    torch.use_deterministic_algorithms(True)
    results = {**every_method(), "kd with a store": with_store(sys.argv[2])}
    if int(os.environ.get("RANK", 0)) == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
