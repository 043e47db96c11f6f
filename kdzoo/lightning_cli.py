"""`kdzoo fit | validate | test | predict`: LightningCLI with the zoo's short names, and a folder for every run.

What needs timm is imported where it is used: it takes a second and more, which `--help` does not have.
"""

import argparse
import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kdzoo import registry
from kdzoo.callbacks import Cost, LastCheckpoint, MetricsFile
from kdzoo.console import Show, console, quieten, say
from kdzoo.errors import UsageError, UserError
from kdzoo.files import write_text
from kdzoo.method import Method
from kdzoo.proof.report import write_report
from kdzoo.ranks import need_one_folder, of_all_ranks, rank
from kdzoo.run_folder import CONFIG, RESULT, newest, running, unfinished
from kdzoo.short_names import explain, read_short_names, spell_out, trust_only_the_zoo


class KdzooCLI(LightningCLI):
    """Gives every run its folder, and after `fit` tests, reports and exports what was trained."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what kdzoo has beside Lightning's arguments."""
        parser.add_argument("--run_dir", type=str | None, default=None, help="The run's folder (runs/<method>/<time>).")
        parser.add_argument("--show", type=Show, default="all", help="What to print while it works.")
        parser.add_argument("--save_every", type=float, default=10.0, help="Minutes between checkpoints in an epoch.")

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Let parsing errors reach `run`, which says them in one sentence."""
        return super().init_parser(exit_on_error=False, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Name the run's folder."""
        config = self.config[self.subcommand]
        config.weights_only = True  # a checkpoint is data: nothing in it is run
        self.name = registry.find(registry.METHODS, config.model.class_path).name
        console.quiet = config.show != "all" or rank() > 0
        time = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        given = config.run_dir or os.environ.get("KDZOO_RUN_DIR")  # the further ranks are told by the first
        if not given:
            need_one_folder()
        self.run_dir = Path(given or f"runs/{self.name}/{time}")
        while not given and self.run_dir.exists():  # of the same second
            self.run_dir = self.run_dir.with_name(f"{self.run_dir.name}+")
        if self.subcommand == "fit":
            kept = config.clone()
            kept.run_dir, kept.ckpt_path, kept.show = None, None, "all"
            self.config_text = self._parser(self.subcommand).dump(kept, skip_none=False)
            if config.ckpt_path == "last":
                config.ckpt_path = None
                if found := unfinished(self.config_text, [Path(given)] if given else newest(Path("runs", self.name))):
                    self.run_dir, checkpoint = found, found / "checkpoints" / "last.ckpt"
                    config.ckpt_path = str(checkpoint) if checkpoint.is_file() else None
                    say("resume", f"{found}{'' if config.ckpt_path else ', from its start'}")
                else:
                    say("resume", "no run of this config is unfinished: a new one starts")
        os.environ["KDZOO_RUN_DIR"] = str(self.run_dir)
        logger = config.trainer.logger
        if hasattr(logger, "class_path") and logger.get("init_args", {}).get("save_dir") in (".", None):
            logger.init_args.save_dir = str(self.run_dir)  # wandb's files, offline ones too, belong to the run
            self.run_dir.mkdir(parents=True, exist_ok=True)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's own callbacks to those of the config."""
        config = self._get(self.config_init, "trainer")
        callbacks = list(config.get("callbacks") or [])
        if self._get(self.config_init, "show") == "nothing":
            kwargs["enable_progress_bar"] = False
        elif config.get("enable_progress_bar") is not False:
            callbacks.append(RichProgressBar(leave=False))
        if self.subcommand == "fit":
            callbacks += [MetricsFile(self.run_dir / "metrics.csv"), Announce()]
            if config.get("enable_checkpointing") is not False:
                every = self._get(self.config_init, "save_every")
                callbacks.append(LastCheckpoint(self.run_dir / "checkpoints", every))
        else:
            kwargs["enable_checkpointing"] = False
        if self.subcommand == "predict":
            callbacks.append(Predictions(self.run_dir))
            self.model.run_dir = self.run_dir
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"The Trainer refuses its arguments: {' '.join(str(error).split())}") from error

    def fit(self, model: Method, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Train, test, report and export."""
        with running(self.run_dir):
            if rank() == 0:
                self.write_config(resumed=bool(kwargs.get("ckpt_path")))
            self.train(model, datamodule, **kwargs)

    def write_config(self, resumed: bool) -> None:
        """Write the config that re-runs the run into its folder, and hand it to the loggers."""
        (self.run_dir / RESULT).unlink(missing_ok=True)
        if not resumed:
            (self.run_dir / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
        write_text(self.run_dir / CONFIG, self.config_text)
        for logger in self.trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(self.config_text))

    def train(self, model: Method, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Do so, in the run's folder."""
        if hasattr(datamodule, "spec"):
            model.check_data(datamodule.spec)  # before a teacher is trained in vain
        model.prepare()
        cost = Cost()
        try:
            self.trainer.fit(model, datamodule=datamodule, **kwargs)
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            if not self.trainer.interrupted:
                raise
            raise UserError(f"Stopped: the same command with --ckpt_path last goes on in {self.run_dir}.") from error
        measured = cost.stop()
        steps = self.trainer.global_step
        self.trainer.test(model, datamodule=datamodule, verbose=False)
        if not self.trainer.is_global_zero:
            return
        metrics = {
            name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("test/")
        }
        result: dict[str, Any] = {
            "method": self.name,
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "steps": steps,
            "resumed": bool(kwargs.get("ckpt_path")),  # then the costs are those since
            "metrics": metrics,
            "teacher": model.teacher_summary(),
            **measured,
            "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "versions": {name: version(name) for name in ("kdzoo", "torch", "lightning")},
        }
        figures = model.figures()
        for logger in self.trainer.loggers:
            if hasattr(logger, "log_image"):
                for title, figure in figures.items():
                    logger.log_image(key=title, images=[figure])
        report = write_report(self.run_dir, result, figures)
        files = model.export(self.run_dir / "export", metrics)
        write_text(self.run_dir / RESULT, json.dumps(result, indent=2))
        teacher = (result["teacher"] or {}).get("scores") or {}
        shown = (
            f"{n.removeprefix('test/')} {v:.4g}" + (f" (teacher {teacher[n]:.4g})" if n in teacher else "")
            for n, v in metrics.items()
        )
        say("result", "test " + "   ".join(shown))
        say("report", str(report))
        say("export", f"{self.run_dir / 'export'}   {', '.join(files)}")
        if f"{self.name}_bench" in registry.config_files():
            say("next", f"kdzoo bench {self.name}        the same against its baselines, over seeds")


class Announce(Callback):
    """Says what is trained, on what, once both are there."""

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Print one line."""
        describe = getattr(trainer.datamodule, "describe", None)  # type: ignore[attr-defined]
        say("student", pl_module.summary() + (f", {describe()}" if describe else ""))


class Predictions(BasePredictionWriter):
    """Lets the method write what it has predicted."""

    def __init__(self, folder: Path) -> None:
        super().__init__("epoch")
        self.folder = folder

    def write_on_epoch_end(self, trainer: Trainer, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        """Gather the ranks' predictions, write them and say where they are."""
        of_all = [batch for part in of_all_ranks(list(predictions)) for batch in part]
        if rank() == 0:
            say("predict", str(pl_module.write_predictions(of_all, self.folder)))


def run(argv: list[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        argv: The command and its arguments.

    Raises:
        UsageError: The arguments are wrong.
        UserError: What they ask for cannot be done.
    """
    quieten()
    trust_only_the_zoo()
    command, *arguments = argv
    arguments = from_checkpoint(command, spell_out(arguments))
    # Lightning starts further ranks with sys.argv, and warns when arguments come from elsewhere.
    saved, sys.argv = sys.argv, [sys.argv[0], command, *arguments]

    class OneCommand(KdzooCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {command: LightningCLI.subcommands()[command]}  # a parser each costs a second

    try:
        with read_short_names(), nullcontext() if command == "fit" else without_teaching():
            OneCommand(
                Method,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"logger": False, "enable_model_summary": False},
            )
    except argparse.ArgumentError as error:
        raise UsageError(explain(str(error))) from error
    finally:
        sys.argv = saved
        os.environ.pop("KDZOO_RUN_DIR", None)


def without_teaching() -> AbstractContextManager[None]:
    """Outside of a fit the teacher has done its work: nothing is trained or loaded for it."""
    from kdzoo.teachers.sources import untrained_teachers

    return untrained_teachers()


def from_checkpoint(command: str, arguments: list[str]) -> list[str]:
    """Add what a checkpoint knows: its run's config, or its method.

    Raises:
        UserError: The checkpoint is missing, damaged, hostile, or not of a registered method.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    parser.add_argument("-c", "--config")
    parser.add_argument("--model")
    known, rest = parser.parse_known_args(arguments)
    if known.ckpt_path is None or (command == "fit" and known.ckpt_path == "last"):
        if command != "fit" and not {"-h", "--help", "--print_config"} & set(arguments):
            raise UsageError(
                f"kdzoo {command} needs a trained model: give --ckpt_path runs/<method>/<time>/checkpoints/last.ckpt."
            )
        return arguments
    from kdzoo.teachers.sources import read_checkpoint

    checkpoint = read_checkpoint(known.ckpt_path)
    hyper_parameters = dict(checkpoint.get("hyper_parameters", {}))
    class_path = hyper_parameters.pop("_class_path", None)
    if class_path is None:
        raise UserError(
            f"The checkpoint '{known.ckpt_path}' does not say which method it is of: kdzoo fit writes ones that do."
        )
    registry.find(registry.METHODS, class_path)
    if any(argument.startswith("--model.") for argument in rest):
        say("model", "its arguments come from the checkpoint; those on the command line are not used")
    if known.config or known.model:
        return arguments
    config = Path(known.ckpt_path).resolve().parent.parent / "config.yaml"
    if config.is_file():
        return ["--config", str(config), *arguments]
    hyper_parameters.pop("_instantiator", None)
    return ["--model", json.dumps({"class_path": class_path, "init_args": hyper_parameters}), *arguments]


def export(argv: list[str]) -> None:
    """Run `kdzoo export RUN [--to FOLDER]`."""
    from kdzoo.teachers.sources import read_checkpoint

    parser = argparse.ArgumentParser(
        prog="kdzoo export", description="Write a run's student in its ecosystem's format."
    )
    parser.add_argument("run", type=Path, help="a run's folder, or a checkpoint")
    parser.add_argument("--to", type=Path, help="where to (default: RUN/export)")
    given = parser.parse_args(argv)
    quieten()
    path = given.run / "checkpoints" / "last.ckpt" if given.run.is_dir() else given.run
    checkpoint = read_checkpoint(path)
    class_path = checkpoint.get("hyper_parameters", {}).get("_class_path", "")
    method = registry.find(registry.METHODS, class_path).load()
    with without_teaching():
        loaded = method.load_from_checkpoint(path, map_location="cpu", weights_only=True)  # type: ignore[attr-defined]
    folder = given.to or path.parent.parent / "export"
    result = path.parent.parent / "result.json"
    scores = json.loads(result.read_text())["metrics"] if result.is_file() else None
    say("export", f"{folder}   {', '.join(loaded.export(folder, scores))}")
