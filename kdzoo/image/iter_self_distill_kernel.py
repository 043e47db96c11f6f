"""Iterated self-distillation of kernel ridge regression, exactly: a training step is a distillation step.

    y^1 = H y,   y^t = H (a_t y + (1 - a_t) y^(t-1)),   H = K (K + lambda I)^-1,   K a Gaussian kernel of the pixels

One decomposition of K gives all steps (`kdzoo.image.self_distillation`). y is the one-hot label less 1 / C, so that
the collapse which a_t = 0 leads to is the uniform answer. The weight is given, or in each step the best one on the
validation part. As many steps as the run has, the first of them the plain fit; no batch is looked at. With one weight
the limit is ridge regression with lambda / a, which `penalty` gives in a single step.
Source: Borup and Andersen, arXiv 2102.13088, sections 3 and 4. Memory grows with the square of `points`, time with
the cube.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics import MeanMetric

from kdzoo.card import Card
from kdzoo.console import count
from kdzoo.datamodules.parts import training_part, validation_part
from kdzoo.errors import UserError
from kdzoo.export.image import export_composed_network
from kdzoo.image.classifier import Classifier
from kdzoo.image.self_distillation import best_weight, dual_coefficients, gaussian_kernel, next_step
from kdzoo.optim import Optim

CARD = Card(
    title="Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by Self-Distillation",
    arxiv="2102.13088",
    year=2021,
    family="image",
    task="image classification",
    teacher="the step before",
    student="kernel ridge regression",
    data="labelled images",
    code="https://github.com/Kennethborup/self_distillation",
    tags=("self-distillation", "closed form"),
)


class KernelRidge(nn.Module):
    """k(x, X) c + 1 / C of images x.

    Args:
        spec: The data's: channels, size, mean, std, classes.
        gamma: Of the kernel, for pixels of variance 1, divided by their number.
    """

    mean: Tensor
    std: Tensor
    points: Tensor

    def __init__(self, spec: dict[str, Any], gamma: float) -> None:
        super().__init__()
        self.pixels, self.classes = spec["channels"] * math.prod(spec["image_size"]), spec["classes"]
        self.gamma = gamma / self.pixels
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(spec[name]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("points", torch.zeros(0, self.pixels))
        # No gradient ever reaches it: the optimizer's step that follows a distillation step only counts.
        self.coefficients = nn.Parameter(torch.zeros(0, self.classes))

    def flat(self, image: Tensor) -> Tensor:
        """Images in [0, 1] to normalised pixels [B, D]."""
        return ((image - self.mean) / self.std).flatten(1)

    def regress(self, image: Tensor, coefficients: Tensor) -> Tensor:
        """The regression's answer [B, C], near 1 for the class and near 0 for others."""
        kernel = gaussian_kernel(self.flat(image), self.points, self.gamma)
        return kernel @ coefficients + 1 / self.classes

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to logarithms of probabilities: the answer, cut off at 0.001 and normalised."""
        answer = self.regress(image, self.coefficients).clamp(min=1e-3)
        return (answer / answer.sum(1, keepdim=True)).log()


class KernelSelfDistill(Classifier):
    """Iterated self-distillation of kernel ridge regression.

    Args:
        alpha: Weight of the ground truth in every step after the first; None: the best one on the validation part.
        penalty: lambda, in all steps.
        gamma: Of the kernel exp(-gamma |x - z|^2 / D), x and z of D normalised pixels.
        points: How many labelled training samples are fitted, drawn by the run's seed; all if there are fewer.

    Attributes:
        estimated: The weight of the last step as it was estimated.
    """

    student: KernelRidge  # type: ignore[assignment]
    target: Tensor
    b: Tensor
    estimated: Tensor

    def __init__(
        self, alpha: float | None = None, penalty: float = 0.1, gamma: float = 1.0, points: int = 10_000
    ) -> None:
        super().__init__("", None, None, Optim(lr=0.0, schedule="constant"))
        if penalty <= 0 or gamma <= 0 or points < 1:
            raise UserError(
                f"iter_self_distill_kernel needs penalty, gamma and points above 0, not {penalty}, {gamma}, {points}."
            )
        self.alpha, self.penalty, self.gamma, self.points = alpha, penalty, gamma, points
        self.automatic_optimization = False

    def make_student(self, spec: dict[str, Any]) -> None:
        """Make a regression without points; they come with the data."""
        self.student = KernelRidge(spec, self.gamma)

    def build(self, spec: dict[str, Any]) -> None:
        """Make room for the state: targets, and the vector b of the step."""
        super().build(spec)
        self.register_buffer("target", torch.zeros(0, spec["classes"], dtype=torch.float64))
        self.register_buffer("b", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("estimated", torch.tensor(torch.nan))
        self.errors = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})

    def summary(self) -> str:
        """Say what is fitted."""
        return f"kernel ridge regression on up to {count(self.points)} images"

    def on_fit_start(self) -> None:
        """Check that there is something to estimate the weight on."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.alpha is None and not data.val_dataloader():
            raise UserError(
                "iter_self_distill_kernel estimates its weight on a validation part, on the training part it would be "
                "1: give data.validation, or model.alpha."
            )

    def on_train_start(self) -> None:
        """Draw the points, once, and decompose their kernel matrix."""
        student = self.student
        if not len(student.points):
            self.draw()
        points = student.points.double()
        self.values, self.vectors = torch.linalg.eigh(gaussian_kernel(points, points, student.gamma))
        self.values = self.values.clamp(min=0)

    def draw(self) -> None:
        """Take the points from the labelled training samples, all ranks the same ones."""
        images, labels = [], []
        for batch in training_part(self, shared=False):
            known = batch["label"] >= 0
            images.append(self.student.flat(batch["image"][known]))
            labels.append(batch["label"][known])
        image, label = torch.cat(images), torch.cat(labels)
        if not len(label):
            raise UserError("iter_self_distill_kernel fits labels, and no training sample has one.")
        draws = torch.Generator().manual_seed(torch.initial_seed())
        rows = torch.randperm(len(label), generator=draws)[: self.points].to(label.device)
        self.student.points = image[rows]
        self.target = one_hot(label[rows], self.student.classes).double() - 1 / self.student.classes
        self.b = torch.ones(len(rows), dtype=torch.float64, device=label.device)
        self.student.coefficients.data = image.new_zeros(len(rows), self.student.classes)

    def coefficients(self, b: Tensor) -> Tensor:
        """The coefficients of a step, float32 [N, C]."""
        return dual_coefficients(b, self.values, self.vectors, self.penalty, self.target).float()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step: the plain fit, or a mix of ground truth and what the step before says."""
        if self.trainer.global_step > 0:
            weight = self.alpha
            if weight is None:
                weight = best_weight(self.held_out())
                self.estimated.fill_(weight)
            self.b = next_step(self.b, self.values, self.penalty, weight)
            self.log("train/weight", weight)
        self.student.coefficients.data = self.coefficients(self.b)
        fitted = self.vectors @ (
            (self.values / (self.values + self.penalty) * self.b)[:, None] * (self.vectors.T @ self.target)
        )
        loss = ((fitted - self.target) ** 2).mean().float()
        self.terms = {"train/mse": loss}
        self.log_dict({"train/mse": loss, "train/loss": loss})
        self.optimizers().step()  # type: ignore[union-attr]
        return loss

    @torch.no_grad()
    def held_out(self) -> Any:
        """Truth, plain fit and fit to the step before alone, on the batches of the validation part."""
        first = self.coefficients(torch.ones_like(self.b))
        alone = self.coefficients(next_step(self.b, self.values, self.penalty, 0.0))
        for batch in validation_part(self):
            truth = one_hot(batch["label"], self.student.classes).float()
            yield truth, *(self.student.regress(batch["image"], c) for c in (first, alone))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean squared error too."""
        super().validation_step(batch, batch_idx)
        self.log_error(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean squared error too."""
        super().test_step(batch, batch_idx)
        self.log_error(batch, "test")

    def log_error(self, batch: dict[str, Tensor], part: str) -> None:
        """Log 1000 times the mean squared error."""
        answer = self.student.regress(batch["image"], self.student.coefficients)
        truth = one_hot(batch["label"], self.student.classes)
        self.errors[part].update(1000 * ((answer - truth) ** 2).mean(1))  # type: ignore[operator]
        self.log(f"{part}/mse", self.errors[part])  # type: ignore[arg-type]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the sizes of what was fitted."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        self.student.points = torch.zeros_like(state["student.points"])
        self.student.coefficients.data = torch.zeros_like(state["student.coefficients"])
        self.target, self.b = torch.zeros_like(state["target"]), torch.zeros_like(state["b"])

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write ONNX: points, coefficients and kernel are no architecture of timm's."""
        return export_composed_network(self.student, dict(self.spec or {}), folder, "kernel ridge regression")
