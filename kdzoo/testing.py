"""The conformance suite of kdzoo: `check_method("name")` is the whole test file of a plugin.

It runs a method's tiny config for three steps on random data with an untrained teacher, and checks what every method
promises. Nothing is downloaded, nothing is kept.
"""

import ast
import math
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from kdzoo import registry
from kdzoo.card import read_card
from kdzoo.console import quieten
from kdzoo.datamodules.random_like import RandomLike
from kdzoo.method import Method
from kdzoo.short_names import class_path, trust_only_the_zoo
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import untrained_teachers

STEPS = 3


def check_method(name: str, config: str | None = None) -> None:
    """Check that a registered method keeps the promises of every method.

    The card is complete and literal; no other method is imported; the arguments survive being written and read; three
    steps give finite losses and change the weights; the same seed gives the same losses; the teacher stays in
    evaluation mode, unchanged, outside the optimizers and the checkpoint; a resumed run ends where the undisturbed one
    does; two validations agree; the export writes what it names; nothing touches the network.

    Args:
        name: The registered name.
        config: The config to run; `<name>_tiny` by default.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    entry = registry.find(registry.METHODS, name)
    _check_source(entry)
    settings = yaml.safe_load(registry.find_config(config or f"{entry.name}_tiny").read_text())
    assert class_path(registry.METHODS, settings["model"]["class_path"]) == entry.path, (
        "the tiny config runs another method"
    )
    _check_config(settings["model"])
    with warnings.catch_warnings(), no_network(), untrained_teachers(), tempfile.TemporaryDirectory() as folder:
        quieten()
        spec = make_data(settings).spec
        first, second = (ShortRun(settings, spec, Path(folder) / str(i)) for i in range(2))
        assert all(math.isfinite(loss) for loss in first.losses), f"the losses are not finite: {first.losses}"
        assert first.losses == second.losses, "the same seed gives other losses"
        assert _differ(first.start, first.method.state_dict()), "no weight changed in three steps"
        _check_teacher(first)
        resumed = ShortRun(settings, spec, Path(folder) / "0", resume=first.checkpoint)
        assert not _differ(first.method.state_dict(), resumed.method.state_dict()), "a resumed run ends elsewhere"
        first.check_validation()
        files = first.method.export(Path(folder) / "export")
        assert files, "the export names no file"
        missing = [file for file in files if not (Path(folder) / "export" / file).exists()]
        assert not missing, f"the export names files that it did not write: {missing}"


def make_method(settings: dict[str, Any]) -> Method:
    """Make the method of a config (its `model` part), as the command line does."""
    parser = _model_parser()
    model = {**settings["model"], "class_path": class_path(registry.METHODS, settings["model"]["class_path"])}
    return parser.instantiate(parser.parse_object({"model": model})).model


def make_data(settings: dict[str, Any]) -> Any:
    """Make the data module of a config (its `data` part)."""
    entry = registry.find(registry.DATA, settings["data"]["class_path"])
    return entry.load()(**settings["data"].get("init_args", {}))


@contextmanager
def no_network() -> Iterator[None]:
    """Make any connection an error while the block runs."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address} was tried: tests and training work without a network")
        connect(self, address)

    socket.socket.connect = refuse  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]


class ShortRun(Callback):
    """One short fit, and what was seen in it."""

    def __init__(
        self, settings: dict[str, Any], spec: dict[str, Any], folder: Path, resume: Path | None = None
    ) -> None:
        seed_everything(0, verbose=False)
        self.method = make_method(settings)
        samples = max(4, self.method.least_per_class * spec.get("classes", 0))
        # An epoch is a step: the resume starts with a whole one.
        self.data = RandomLike(spec, samples, batch_size=samples)
        self.losses: list[float] = []
        self.modes: list[bool] = []
        keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STEPS - 1, save_top_k=-1)
        self.trainer = Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            logger=False,
            callbacks=[self, keeper],
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        self.trainer.fit(self.method, datamodule=self.data, ckpt_path=resume, weights_only=True)
        self.checkpoint = folder / f"step={STEPS - 1}.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Remember the weights, and watch the teachers."""
        self.start = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.teachers = [
            network
            for module in pl_module.modules()
            if isinstance(module, FrozenTeacher)
            for network in module.networks
        ]
        self.taught = [{name: t.clone() for name, t in teacher.state_dict().items()} for teacher in self.teachers]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember the loss, and in which mode the teachers are."""
        self.modes += [module.training for teacher in self.teachers for module in teacher.modules()]
        self.losses.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs))

    def check_validation(self) -> None:
        """Validate twice."""
        first, second = (self.trainer.validate(self.method, datamodule=self.data, verbose=False) for _ in range(2))
        assert first == second, f"two validations differ: {first} and {second}"


def _check_source(entry: registry.Entry) -> None:
    source = read_card(entry)
    card = source.card
    assert card is not None, f"{entry.module} has no CARD"
    for field in ("title", "family", "year", "task"):
        assert getattr(card, field), f"the card of {entry.name} has no {field}"
    others = {other.module for other in registry.entries(registry.METHODS).values()} - {entry.module}
    for node in ast.walk(ast.parse(Path(source.file).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert not others & set(names), f"{entry.module} imports another method: {others & set(names)}"


def _check_config(model: dict[str, Any]) -> None:
    parser = _model_parser()
    config = parser.parse_object({"model": {**model, "class_path": class_path(registry.METHODS, model["class_path"])}})
    text = parser.dump(config, skip_none=False)
    assert "Unable to serialize" not in text, f"an argument cannot be written into a config:\n{text}"
    assert parser.dump(parser.parse_string(text), skip_none=False) == text, (
        "a config that was written reads differently"
    )


def _check_teacher(run: ShortRun) -> None:
    optimised = {
        id(p) for optimizer in run.trainer.optimizers for group in optimizer.param_groups for p in group["params"]
    }
    saved = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    assert set(saved) == set(run.method.state_dict()), "the checkpoint holds other keys than the method"
    for teacher, taught in zip(run.teachers, run.taught, strict=True):
        assert not any(run.modes), "a teacher was in training mode during a step"
        assert not _differ(taught, teacher.state_dict()), "a teacher's weights or statistics changed"
        assert not any(p.requires_grad for p in teacher.parameters()), "a teacher's parameter asks for a gradient"
        assert not optimised & {id(p) for p in teacher.parameters()}, "an optimizer holds a teacher's parameter"
        weights = {t.data_ptr() for t in teacher.state_dict().values()}
        held = {t.data_ptr() for t in run.method.state_dict().values()}
        assert not weights & held, "a teacher's weights are in the checkpoint"


def _model_parser() -> LightningArgumentParser:
    trust_only_the_zoo()  # as the command line does; plugins may have come since it did
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(Method, "model", subclass_mode=True)
    return parser


def _differ(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() != right.keys() or any(not torch.equal(left[name], right[name]) for name in left)
