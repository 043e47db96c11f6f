"""`SuperResolver`: what methods that train a super-resolution network share, from loss and metrics to pictures."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torchmetrics import MeanMetric

from kdzoo.callbacks import own_memory
from kdzoo.console import count, say
from kdzoo.datamodules.photographs import Picture, write_png
from kdzoo.dense.imdn_network import IMDNNetwork, PlainNetwork, bicubic
from kdzoo.dense.tiling import passes, pieces
from kdzoo.dense.trained import NETWORKS, warm_start
from kdzoo.errors import UserError
from kdzoo.export.super_resolution import export_super_resolver
from kdzoo.method import Method
from kdzoo.metrics.sr import crops_figure, psnr_y, ssim_y, telling_crop
from kdzoo.ranks import of_all_ranks
from kdzoo.teachers import sources

SHOWN = 4  # photographs in the report
PICTURES = "pictures"  # folder of what `kdzoo predict` upscales


class SuperResolver(Method):
    """Trains a network to upscale images; a subclass says which, and may add terms to `losses`.

    Args:
        network: A key of `NETWORKS`.
        arguments: The network's, without the scale, which the data say.
        lr: Learning rate of Adam at the start.
        stages: The rate is halved at the end of each of so many equal parts of the run.
        optimizer: Another optimizer; its learning rate is halved in the same way.
        weights: Export of a run to start from; one for another scale gives all but its up-sampler.
    """

    modality = "super_resolution"
    student: IMDNNetwork | PlainNetwork

    def __init__(
        self,
        network: str,
        arguments: dict[str, Any],
        lr: float,
        stages: int,
        optimizer: OptimizerCallable | None,
        weights: str | None,
    ) -> None:
        super().__init__()
        if stages < 1 or lr <= 0:
            raise UserError(f"{type(self).__name__}: lr={lr} must be positive, and stages={stages} 1 or more.")
        self.network, self.arguments = network, arguments
        self.lr, self.stages, self.optimizer, self.weights = lr, stages, optimizer, weights

    def build(self, spec: dict[str, Any]) -> None:
        """Make the network and the metrics."""
        self.student = NETWORKS[self.network](spec["scale"], **self.arguments)
        if self.weights and not sources.untrained():
            warm_start(self.student, Path(self.weights))
        self.val_scores = nn.ModuleDict({"psnr_y": MeanMetric()})
        self.test_scores = nn.ModuleDict({name: MeanMetric() for name in ("psnr_y", "ssim_y", "psnr_y_bicubic")})
        self.seen: list[tuple[tuple[Tensor, Tensor, Tensor], tuple[float, float]]] = []

    def summary(self) -> str:
        """Say the network's name and size."""
        return f"{self.network} ({count(sum(p.numel() for p in self.student.parameters()))} parameters)"

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `l1`."""
        return {"l1": l1_loss(self.student(batch["lr"]), batch["hr"])}

    def configure_optimizers(self) -> Any:
        """Adam, whose rate is halved after each of `stages` equal parts of the run; nothing where nothing is learnt."""
        parameters = list(self.student.parameters())
        if not parameters:
            return []
        if not math.isfinite(self.total_steps):
            raise UserError("The learning rate follows the run's length: give trainer.max_epochs or max_steps.")
        optimizer = self.optimizer(parameters) if self.optimizer else torch.optim.Adam(parameters, lr=self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 ** int(self.stages * min(step / max(1.0, self.total_steps), 0.999999))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ------------------------------------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the luma PSNR of the validation part."""
        self._score("val", psnr_y=psnr_y(self.student(batch["lr"]), batch["hr"], self.student.scale))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log luma PSNR and SSIM of the test part, and the PSNR of bicubic interpolation; remember some crops."""
        scale = self.student.scale
        output, truth = self.student(batch["lr"]), batch["hr"]
        plain = bicubic(batch["lr"], scale)
        scores = {"psnr_y": psnr_y(output, truth, scale), "psnr_y_bicubic": psnr_y(plain, truth, scale)}
        self._score("test", ssim_y=ssim_y(output, truth, scale), **scores)
        for number in range(min(len(truth), SHOWN - len(self.seen))):
            rows, columns = telling_crop(plain[number], truth[number])
            crops = [each[number, :, rows, columns].float().cpu() for each in (plain, output, truth)]
            pair = float(scores["psnr_y_bicubic"][number]), float(scores["psnr_y"][number])
            self.seen.append(((crops[0], crops[1], crops[2]), pair))

    def on_test_start(self) -> None:
        """Forget the last test."""
        self.seen = []

    def on_test_epoch_end(self) -> None:
        """Bring together what the ranks have seen; later only the first draws."""
        self.seen = [crops for part in of_all_ranks(self.seen) for crops in part][:SHOWN]

    def _score(self, part: str, **values: Tensor) -> None:
        scores: Any = self.val_scores if part == "val" else self.test_scores
        for name, value in values.items():
            scores[name].update(value)
        self.log_dict({f"{part}/{name}": scores[name] for name in values}, prog_bar=part == "val")

    def figures(self) -> dict[str, Figure]:
        """Draw crops of the last test: interpolated, upscaled, true."""
        return {"Crops": crops_figure(*zip(*self.seen))} if self.seen else {}

    # ------------------------------------------------------------------------------------------------ prediction

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Upscale one picture of any size; write it below the run's folder, or return it where there is none."""
        lr, picture = batch["lr"], batch["picture"]  # float32 [1, 3, h, w]
        scale, levels = self.student.scale, np.iinfo(picture.pixels.dtype)
        height, width, channels = picture.pixels.shape
        pixels = np.empty((scale * height, scale * width, channels), picture.pixels.dtype)
        # What the process holds by now, the picture included, and the result's pages, which are not yet touched.
        held = torch.cuda.memory_allocated(lr.device) if lr.is_cuda else own_memory()
        memory = 1e9 * batch["memory"] - held - pixels.nbytes
        steps = pieces(self.student, lr, batch["tiling"], memory)
        for piece in self._shown(steps, passes(self.student, lr, batch["tiling"], memory), Path(batch["path"]).name):
            if piece is not None:
                (top, left, bottom, right), tile = piece
                tile = tile.float().mean(1, keepdim=True) if channels == 1 else tile.float()
                tile = (levels.max * tile[0].clamp(0, 1)).round().permute(1, 2, 0)  # [h, w, channels]
                pixels[top:bottom, left:right] = tile.cpu().numpy().astype(pixels.dtype)
        alpha = picture.alpha
        if alpha is not None:  # transparency is interpolated
            alpha = np.asarray(Image.fromarray(alpha).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))
        result = Picture(pixels, alpha, picture.profile)
        if self.run_dir is None:
            return {"path": batch["path"], "picture": result}
        file = self.run_dir / PICTURES / f"{batch['name']}_x{scale}.png"
        write_png(file, result)
        say("picture", f"{file}   {width} x {height} -> {scale * width} x {scale * height}")
        return {"path": batch["path"], "file": str(file)}

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Say where the pictures are: each was written when it was ready."""
        return folder / PICTURES

    def _shown(self, steps: Iterator[Any], total: int, name: str) -> Iterator[Any]:
        bar = getattr(self.trainer.progress_bar_callback, "progress", None)  # of Lightning's bar, if it is shown
        if bar is None:
            yield from steps
            return
        task = bar.add_task(name, total=total)
        for step in steps:
            yield step
            bar.advance(task)
            bar.refresh()
        bar.remove_task(task)

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the network: see `kdzoo.export.super_resolution`."""
        return export_super_resolver(self.student, self.network, self.arguments, dict(self.spec or {}), folder, scores)
