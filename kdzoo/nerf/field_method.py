"""`FieldMethod`: what methods that train a radiance field share, from the optimizer and the scores to pictures."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchmetrics import MeanMetric, MinMetric

from kdzoo.console import count, say
from kdzoo.datamodules.augment import uniform
from kdzoo.datamodules.cameras import Camera, Prior, SpherePrior
from kdzoo.errors import UserError, near
from kdzoo.export.radiance import export_radiance, turntable, write_views
from kdzoo.method import Method
from kdzoo.metrics.views import WINDOW, Look, psnr, scores_figure, ssim, strip_figure, views_figure
from kdzoo.nerf.fields import FIELDS
from kdzoo.nerf.radiance import Radiance
from kdzoo.ranks import of_all_ranks

JITTER = 0  # slot of the random numbers
SHOWN = 4  # views in the report
PICTURES = "pictures"  # folder of what `kdzoo predict` renders


class FieldMethod(Method):
    """Trains a radiance field; a subclass implements `losses`.

    Args:
        field: `hash`, `mlp`, `vm` or `tensors`.
        sizes: The field's, where they differ from the published ones (see `kdzoo.nerf.fields`).
        steps: Steps of a ray along the diagonal of the scene's box.
        grid: Resolution of the occupancy grid.
        lr: Learning rate of AdamW at the start; networks of `vm` and all of `mlp` learn at a tenth of it.
        lr_end: Learning rate at the end, after a cosine.
        weight_decay: Of AdamW.
        optimizer: Another optimizer; the cosine goes down to the same share of its rate.
        mesh: Cells along each axis of the exported mesh; 0 for none.
        mesh_density: Density of its surface.
        frames: Pictures of the exported turntable; 0 for none.
    """

    modality = "radiance_field"
    student: Radiance
    ready: Tensor

    def __init__(
        self,
        field: str,
        sizes: dict[str, int] | None,
        steps: int,
        grid: int,
        lr: float,
        lr_end: float,
        weight_decay: float,
        optimizer: OptimizerCallable | None,
        mesh: int,
        mesh_density: float,
        frames: int,
    ) -> None:
        super().__init__()
        if field not in FIELDS:
            raise UserError(
                f"{type(self).__name__}: field={field} must be one of {', '.join(FIELDS)}.{near(field, FIELDS)}"
            )
        if steps < 1 or not 0 < lr_end <= lr:
            raise UserError(
                f"{type(self).__name__}: steps={steps} must be 1 or more, and lr_end={lr_end} positive and at most "
                f"lr={lr}."
            )
        self.field, self.sizes, self.steps, self.grid = field, dict(sizes or {}), steps, grid
        self.lr, self.lr_end, self.weight_decay, self.optimizer = lr, lr_end, weight_decay, optimizer
        self.mesh, self.mesh_density, self.frames = mesh, mesh_density, frames
        self.prior: Prior | None = None
        self.camera: Camera | None = None

    def build(self, spec: dict[str, Any]) -> None:
        """Make the field and the metrics."""
        self.student = Radiance(self.field, self.sizes, spec["bound"], self.steps, self.grid)
        self.register_buffer("ready", torch.tensor(False))  # whether the grid has its start
        self.val_scores = nn.ModuleDict({"psnr": MeanMetric()})
        names = ("psnr", "ssim", "psnr_teacher", "teacher_psnr")
        self.test_scores = nn.ModuleDict({**{name: MeanMetric() for name in names}, "psnr_worst": MinMetric()})
        self.looks: list[Look] = []

    def summary(self) -> str:
        """Say which field, and its size."""
        return f"{self.field} ({count(sum(p.numel() for p in self.student.parameters()))} parameters)"

    def on_fit_start(self) -> None:
        """Learn from the data where cameras are, and give the grid its start unless a checkpoint did."""
        self.learn_cameras()
        if not self.ready:
            self.start_grid()
            self.ready.fill_(True)

    def learn_cameras(self) -> None:
        """Take the first training camera, and how cameras are spread, from the data."""
        bound = self.student.bound
        self.prior, self.camera = SpherePrior((2.5 * bound, 3.5 * bound)), Camera.with_angle(32, 32, 0.7)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "cameras"):
            data.setup()  # images may be shrunk, and cameras with them
            found = data.cameras()
            self.prior, self.camera = found.prior, found.train.camera(0)

    def start_grid(self) -> None:
        """Carve the grid out of the masks, where the data have any."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "masked"):
            self.student.grid.carve(data.masked())
            share = 100 * float(self.student.grid.occupied.float().mean())
            say("grid", f"{share:.1f} % of {self.grid}^3 cells may hold something")

    def jitter(self, batch: dict[str, Tensor]) -> Tensor:
        """By how much each ray's points are shifted, [B] in [0, 1): a function of the ray alone."""
        return uniform(0, batch["index"].cpu(), batch["view"].cpu(), JITTER).to(self.device)

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine to `lr_end`."""
        if not math.isfinite(self.total_steps):
            raise UserError("The learning rate follows the run's length: give trainer.max_epochs or max_steps.")
        slow = {id(parameter) for parameter in self.student.field.slow_parameters()}
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if (id(p) in slow) == is_slow], "lr": self.lr * (0.1 if is_slow else 1.0)}
            for is_slow in (False, True)
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer:
            optimizer: Any = self.optimizer([p for group in groups for p in group["params"]])
        else:
            optimizer = torch.optim.AdamW(
                groups, betas=(0.9, 0.99), eps=1e-15, weight_decay=self.weight_decay, fused=True
            )
        last = self.lr_end / self.lr

        def factor(step: int) -> float:
            return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1.0, self.total_steps))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ------------------------------------------------------------------------------------------------ evaluation

    def picture(self, radiance: Radiance, batch: dict[str, Tensor]) -> Tensor:
        """Render the rays of a batch, [B, 3] in [0, 1]."""
        direction = normalize(batch["direction"], dim=1)
        return radiance.look(batch["origin"], direction, batch["background"]).rgb.clamp(0, 1)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean PSNR of the validation views."""
        self._score("val", psnr=psnr(self.picture(self.student, batch), batch["rgb"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log PSNR (mean and worst view), SSIM, and how far the teacher is; remember some views."""
        found, truth = self.picture(self.student, batch), batch["rgb"]
        score = psnr(found, truth)
        scores, pictures, taught = {"psnr": score, "psnr_worst": score}, {"truth": truth, "student": found}, None
        if teacher := self.teacher_radiance():
            pictures["teacher"] = self.picture(teacher, batch)
            scores["psnr_teacher"] = psnr(found, pictures["teacher"])
            scores["teacher_psnr"] = psnr(pictures["teacher"], truth)
            taught = float(scores["teacher_psnr"])
        height = int(batch.get("height", 1))
        shaped = {title: each.view(height, -1, 3) for title, each in pictures.items()}
        if min(shaped["truth"].shape[:2]) >= WINDOW:
            scores["ssim"] = ssim(shaped["student"], shaped["truth"])
        self._score("test", **scores)
        shown = {title: each.float().cpu() for title, each in shaped.items()} if len(self.looks) < SHOWN else {}
        self.looks.append(Look(int(batch.get("name", batch_idx)), float(score), shown, taught))

    def teacher_radiance(self) -> Radiance | None:
        """The teacher, to be compared with; None where there is none."""
        return None

    def on_test_start(self) -> None:
        """Forget the last test."""
        self.looks = []
        if self.prior is None:
            self.learn_cameras()

    def on_test_epoch_end(self) -> None:
        """Bring together what the ranks have seen."""
        self.looks = [look for part in of_all_ranks(self.looks) for look in part]

    def _score(self, part: str, **values: Tensor) -> None:
        scores: Any = self.val_scores if part == "val" else self.test_scores
        for name, value in values.items():
            scores[name].update(value)
        self.log_dict({f"{part}/{name}": scores[name] for name in values}, prog_bar=part == "val", batch_size=1)

    def figures(self) -> dict[str, Figure]:
        """Draw views of the last test, the PSNR of each, and a turn around the scene."""
        shown = [look for look in self.looks if look.pictures][:SHOWN]
        if not shown:
            return {}
        found = {"Views": views_figure(shown), "Every view": scores_figure(self.looks)}
        if self.frames and self.prior is not None and self.camera is not None:
            pictures = [each.rgb for each in turntable(self.student, self.prior, self.camera, min(12, self.frames))]
            found["Turntable"] = strip_figure(pictures)
        return found

    # ------------------------------------------------------------------------------------- prediction and export

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """Render a view, colours and distances; write it below the run's folder, or return it where there is none."""
        height = int(batch.get("height", 1))
        found = self.student.views(batch["origin"], normalize(batch["direction"], dim=1), batch["background"])
        parts = list(self._shown(found, len(batch["origin"]), f"view {batch.get('name', batch_idx)}"))
        rgb, depth, opacity = (
            torch.cat([getattr(each, name) for each in parts]) for name in ("rgb", "depth", "opacity")
        )
        view = rgb.view(height, -1, 3), depth.view(height, -1), opacity.view(height, -1)
        if self.run_dir is None:
            return view
        return write_views(self.run_dir / PICTURES, {f"{int(batch.get('name', batch_idx)):04d}": view})

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Say where the pictures are: each was written when it was ready."""
        return folder / PICTURES

    def _shown(self, parts: Iterator[Any], rays: int, name: str) -> Iterator[Any]:
        bar = getattr(self.trainer.progress_bar_callback, "progress", None)  # of Lightning's bar, if it is shown
        task = bar.add_task(name, total=rays) if bar is not None else None
        for part in parts:
            yield part
            if bar is not None:
                bar.advance(task, len(part.rgb))
                bar.refresh()
        if bar is not None:
            bar.remove_task(task)

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the field, its turntable, depth maps and mesh: see `kdzoo.export.radiance`."""
        where = self.prior, self.camera, self.frames
        return export_radiance(
            self.student, dict(self.spec or {}), folder, scores, *where, self.mesh, self.mesh_density
        )
