"""Every method, stopped inside an epoch and resumed from its checkpoint, ends with the same bits."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer, seed_everything

from kdzoo import registry
from kdzoo.callbacks import LastCheckpoint
from kdzoo.card import read_card
from kdzoo.console import quieten
from kdzoo.short_names import class_path
from kdzoo.teachers.sources import untrained_teachers
from kdzoo.testing import make_data, make_method

METHODS = [name for name, entry in registry.entries(registry.METHODS).items() if entry.distribution == "kdzoo"]
FAMILIES = {name: read_card(registry.find(registry.METHODS, name)).card.family for name in METHODS}
# A method that distils data reads the real images at its start: workers would load batches that nobody looks at.
# Every batch of a graph is the whole graph, without workers.
WITHOUT = ("dataset", "graph")
CASES = [(name, workers) for name in METHODS for workers in (0, 1) if not (workers and FAMILIES[name] in WITHOUT)]


class Keep(LastCheckpoint):
    """Keeps the checkpoint of a step under a name of its own."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, every=0)
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step and not (self.path.parent / "stop.ckpt").exists():
            trainer.save_checkpoint(self.path.parent / "stop.ckpt")


def fit(settings: dict, folder: Path, batches: int, stop: int, resume: Path | None = None) -> dict[str, torch.Tensor]:
    seed_everything(0, verbose=False)
    method = make_method(settings)
    trainer = Trainer(
        max_epochs=3,
        limit_train_batches=batches,
        accumulate_grad_batches=1 if not method.automatic_optimization else 2,
        accelerator="cpu",
        logger=False,
        callbacks=[Keep(folder, stop)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=make_data(settings), ckpt_path=resume, weights_only=True)
    return {**method.state_dict(), "random": torch.get_rng_state(), "steps": torch.tensor(trainer.global_step)}


@pytest.mark.parametrize(("name", "workers"), CASES)
def test_resumed_inside_an_epoch(name, workers, tmp_path):
    quieten()
    settings = yaml.safe_load(registry.find_config(f"{name}_tiny").read_text())
    settings["model"]["class_path"] = class_path(registry.METHODS, settings["model"]["class_path"])
    if "outer" in settings["model"]["init_args"]:  # an iteration of many updates is the same with a few
        settings["model"]["init_args"]["outer"] = 2
    if settings["data"]["class_path"] in ("debian_dependencies", "provenance"):  # every batch is a whole graph
        if "inner" in settings["model"]["init_args"] and "experts" in settings["model"]["init_args"]:
            settings["model"]["init_args"]["inner"] = {"steps": 3}
    else:
        settings["data"]["init_args"] |= {"batch_size": 16, "num_workers": workers}
    # An epoch ends inside of an accumulation. An iteration of a method that distils data is long.
    batches, stop = (2, 3) if FAMILIES[name] == "dataset" else (7, 6 + workers)
    with untrained_teachers():
        undisturbed = fit(settings, tmp_path, batches, stop)
        resumed = fit(settings, tmp_path / "second", batches, -1, tmp_path / "stop.ckpt")
    assert undisturbed.keys() == resumed.keys()
    for key, value in undisturbed.items():
        assert torch.equal(value, resumed[key]), key
