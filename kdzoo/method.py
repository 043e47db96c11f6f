"""`Method`: the base of every registered method. It assumes nothing about labels, teachers or optimizers."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule
from matplotlib.figure import Figure
from torch import Tensor

from kdzoo.callbacks import ExactResume, StopAtNaN
from kdzoo.console import count
from kdzoo.errors import UserError
from kdzoo.spec import EXAMPLES, check_spec
from kdzoo.teachers.fill import FillStores, choose_views
from kdzoo.teachers.frozen import FrozenTeacher


class Method(LightningModule):
    """A distillation method, or any training that takes part in one.

    A subclass implements `build` (make the networks for a data spec), `losses` (or `training_step` with manual
    optimisation), `configure_optimizers` and `export`. Teachers are `FrozenTeacher`s: no parameter of theirs is ever
    in `parameters()` or in a checkpoint.

    Attributes:
        spec: The spec of the data that the networks were built for (see `architecture`), None until `build` was called.
        terms: The terms of the last step's loss, by name. Lightning's own record keeps those of earlier steps too.
        modality: The modality of the data that the method is for; None for any.
        least_per_class: How many samples of each class the training part must have, if the method needs them.
        run_dir: The folder of `kdzoo predict`, for predictions that are written one by one; else None.
    """

    modality: str | None = None
    least_per_class = 0

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()  # the arguments of the subclass, found by Lightning in the calling frames
        self.spec: dict[str, Any] | None = None
        self.terms: dict[str, Tensor] = {}
        self.run_dir: Path | None = None
        self.stored_teachers: list[FrozenTeacher] = []  # set when a fit starts

    # ---------------------------------------------------------------------------------------------- to implement

    def build(self, spec: dict[str, Any]) -> None:
        """Make the networks for data of this spec, as submodules; called once, under a random state of its own."""
        raise NotImplementedError

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the named terms of the loss, each weighted, each a scalar; the loss is their sum."""
        raise NotImplementedError

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the result alone, in the format of its own ecosystem, with its test scores; return the files' names."""
        raise NotImplementedError

    def figures(self) -> dict[str, Figure]:
        """Return titled pictures for the report, drawn from the last `test`."""
        return {}

    def prepare(self) -> None:
        """Make what must exist before the Trainer starts, such as a recipe's teacher."""

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Write what `predict_step` returned, batch by batch, into a folder; return the file."""
        raise UserError(f"{type(self).__name__} makes no predictions of a data set.")

    def summary(self) -> str:
        """Say in a few words what is trained."""
        return f"{count(sum(p.numel() for p in self.parameters() if p.requires_grad))} parameters"

    def teacher_summary(self) -> dict[str, Any] | None:
        """Say who teaches: `source`, `hash`, `parameters`, `scores`."""
        return None

    # -------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum the terms of `losses` and log each by its name."""
        terms = self.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        self.terms = {f"train/{name}": term.detach() for name, term in terms.items()}
        self.log_dict(self.terms)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, in [0, 1]: schedules in it make long and short runs one algorithm."""
        return min(1.0, self.trainer.global_step / self.total_steps) if math.isfinite(self.total_steps) else 0.0

    @property
    def total_steps(self) -> float:
        """Optimizer steps of the whole run; infinite if it has no end."""
        if not hasattr(self, "_total_steps"):
            self._total_steps = float(self.trainer.estimated_stepping_batches)
        return self._total_steps

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Add to a training batch what the teachers' stores have of it (Lightning's hook)."""
        if self.stored_teachers and self.trainer.training:
            for teacher in self.stored_teachers:
                batch = teacher.with_stored(batch)
        return batch

    def configure_callbacks(self) -> list[Callback]:
        """Give every Trainer an exact resume, the teachers' stores and a stop at NaN (Lightning's hook)."""
        return [ExactResume(), FillStores(), StopAtNaN()]

    # ---------------------------------------------------------------------------------- building and checkpoints

    def configure_model(self) -> None:
        """Build the networks for the Trainer's data (Lightning's hook, called before every fit, validate, test ...)."""
        if self._trainer is None:  # loaded without one: `on_load_checkpoint` builds
            return
        spec = getattr(getattr(self.trainer, "datamodule", None), "spec", None)
        if spec is None:
            raise UserError(
                f"{type(self).__name__} takes its sizes from the data: give the Trainer a data module with a `spec`."
            )
        self.__dict__.pop("_total_steps", None)  # of an earlier fit
        # Lightning asks whether this was meant: it was.
        warnings.filterwarnings("ignore", message="You have overridden `on_before_batch_transfer`")
        self.build_for(spec)
        choose_views(self, self.trainer.datamodule)  # type: ignore[attr-defined]

    def check_data(self, spec: dict[str, Any]) -> None:
        """Raise a `UserError` if data of this spec are nothing for the method."""
        if self.modality and spec.get("modality", self.modality) != self.modality:
            raise UserError(
                f"{type(self).__name__} takes data of the modality '{self.modality}', and these are of "
                f"'{spec['modality']}': give it {EXAMPLES.get(self.modality, 'others (kdzoo list)')}."
            )

    def build_for(self, spec: dict[str, Any]) -> None:
        """Build the networks once for `spec`; from then on any other spec is an error."""
        if self.spec is not None:
            return check_spec(self.spec, spec, f"This {type(self).__name__}")
        self.check_data(spec)
        # A random state of its own: whatever was drawn before (a teacher, a split), one seed gives one student.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            self.build(spec)
        self.spec = dict(spec)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the spec, and only what `torch.load(weights_only=True)` can read."""
        checkpoint["spec"] = self.spec
        if "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"] = plain(dict(checkpoint["hyper_parameters"]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the networks that the checkpoint is of, or check that they are these."""
        if checkpoint.get("spec") is None:
            raise UserError("The checkpoint has no data spec, so it was not written by kdzoo: it cannot be continued.")
        self.build_for(checkpoint["spec"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those of another architecture are a `UserError`."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1:2] or [str(error)]
            raise UserError(
                f"The checkpoint is of another architecture than this {type(self).__name__}: {first[0].strip()[:300]}"
            ) from error


def plain(value: Any) -> Any:
    """Turn hyper-parameters into plain values; what has no plain form (a function) becomes None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else None
