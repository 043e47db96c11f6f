"""Difficulty-aligned trajectory matching: early epochs first, later ones as the run goes on, and learned soft labels.

    loss = |theta_N - tau_{s+M}|^2 / |tau_s - tau_{s+M}|^2,    s ~ U{T_min ... T(t) - 1}
    T(t) = T_first + (T_max - T_first) * min(1, t / growth)

Early parts of a trajectory teach easy patterns, late ones hard ones that only larger sets have room for. Labels are
softmax(l): l starts as the mean logits of the experts' last snapshots, of those that classify the image rightly, and is
learned with the pixels. Images start as real ones that an expert classifies rightly. An iteration whose loss is above a
threshold changes nothing.
Source: Guo et al., arXiv 2310.05773, section 4; the defaults are the authors' configuration for CIFAR-10 with 10 images
per class, where t = 1000 of 10,000 iterations ends the growth. Where no expert is right, all of them are asked: the
authors' code divides by zero.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdzoo.card import Card
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.experts import Experts
from kdzoo.dataset.matching import CHUNK, InnerLoop, Segment, TrajectoryMatching
from kdzoo.errors import UserError

CARD = Card(
    title="Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching",
    arxiv="2310.05773",
    year=2024,
    family="dataset",
    task="dataset distillation",
    teacher="flat trajectories of experts",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/NUS-HPC-AI-Lab/DATM",
    tags=("dataset distillation", "trajectory matching", "soft labels", "curriculum"),
)


def right_on_average(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean logits of the experts that are right about an image; of all of them where none is.

    Args:
        logits: [experts, n, classes].
        labels: int64 [n].

    Returns:
        [n, classes].
    """
    right = (logits.argmax(2) == labels).float()  # [experts, n]
    right = torch.where(right.sum(0) > 0, right, torch.ones_like(right))
    return (logits * right[:, :, None]).sum(0) / right.sum(0)[:, None]


class DATM(TrajectoryMatching):
    """Difficulty-aligned trajectory matching.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images that an expert classifies rightly, from any real images, or from noise.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        min_start: T_min, the first epoch that a piece may start after.
        first_max_start: T_first; in the beginning a piece starts before it.
        max_start: T_max; in the end a piece starts before it.
        growth: Fraction of the run over which the window grows, in (0, 1].
        inner: How a network is trained on the synthetic set.
        experts: How the experts are trained.
        lr_img: Learning rate of the pixels.
        lr_lr: Learning rate of the learned rate.
        lr_start: The learned rate at the start.
        momentum: Of the SGD of both.
        lr_label, momentum_label: Of the labels' SGD; 0 keeps the labels as they start.
        threshold: A loss ratio above it changes nothing.
        zca: Whiten the images.
        network: Architecture that distils and judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    label_logits: nn.Parameter

    def __init__(
        self,
        ipc: int = 10,
        init: Literal["right", "real", "noise"] = "right",
        expert_epochs: int = 2,
        min_start: int = 0,
        first_max_start: int = 10,
        max_start: int = 20,
        growth: float = 0.1,
        inner: InnerLoop = InnerLoop(steps=80, batch_size=100),
        experts: Experts = Experts(epochs=100, rho=0.01, alpha=0.3),
        lr_img: float = 100.0,
        lr_lr: float = 1e-5,
        lr_start: float = 0.01,
        momentum: float = 0.5,
        lr_label: float = 2.0,
        momentum_label: float = 0.9,
        threshold: float = 1.0,
        zca: bool = True,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(
            ipc, "noise" if init == "noise" else "real", expert_epochs, max_start, inner, experts,
            lr_img, lr_lr, lr_start, momentum, zca, network, width, depth, evaluation,
        )  # fmt: skip
        if not 0 <= min_start < first_max_start <= max_start or not 0 < growth <= 1:
            raise UserError(
                f"DATM: the window {min_start} ... {first_max_start} cannot grow to {max_start} over {growth} of the "
                "run: give min_start < first_max_start <= max_start, and growth in (0, 1]."
            )
        self.right = init == "right"
        self.min_start, self.first_max_start, self.growth = min_start, first_max_start, growth
        self.lr_label, self.momentum_label, self.threshold = lr_label, momentum_label, threshold

    def build(self, spec: dict[str, Any]) -> None:
        """Make the synthetic set and its labels."""
        super().build(spec)
        self.label_logits = nn.Parameter(torch.zeros(len(self.images), spec["classes"]))

    def configure_optimizers(self) -> Any:
        """SGD on the pixels, the learned rate and the labels."""
        optimizer = super().configure_optimizers()
        labels = {"params": [self.label_logits], "lr": self.lr_label, "momentum": self.momentum_label}
        optimizer.add_param_group(labels)
        return optimizer

    @torch.no_grad()
    def start(self) -> None:
        """Choose images that an expert is right about, and ask the experts for their labels."""
        super().start()
        if self.right:
            self.set_images(torch.cat([self.choose_right(label) for label in range(len(self.real.rows))]))
        logits = [self.last_logits(expert, self.images) for expert in range(self.experts.count)]
        self.label_logits.copy_(right_on_average(torch.stack(logits), self.labels))

    def choose_right(self, label: int) -> Tensor:
        """Rows of `ipc` images of a class, in random order; those that an expert is right about come first."""
        rows = self.real.rows[label]
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))]
        chosen = rows[:0]
        for expert in range(self.experts.count):  # the first is asked for all; the others where it does not suffice
            for part in rows.split(CHUNK):
                if len(chosen) >= self.ipc:
                    return chosen[: self.ipc]
                right = self.last_logits(expert, self.real_images(part)).argmax(1).cpu() == label
                new = part[right]
                chosen = torch.cat([chosen, new[~torch.isin(new, chosen)]])
        return torch.cat([chosen, rows[~torch.isin(rows, chosen)]])[: self.ipc]

    def last_logits(self, expert: int, images: Tensor) -> Tensor:
        """What a fully trained expert says of images [n, C, H, W]: [n, classes]."""
        weights = self.trajectories.read(expert, [self.experts.epochs])[0]
        return torch.cat([self.student(weights, part) for part in images.split(CHUNK)])

    # ---------------------------------------------------------------------------------------------- an iteration

    def window(self) -> tuple[int, int]:
        """The window of this iteration."""
        grown = (self.max_start - self.first_max_start) * min(1.0, self.progress / self.growth)
        return self.min_start, self.first_max_start + int(grown)

    def inner_labels(self, segment: Segment) -> Tensor:
        """The learned labels."""
        return self.label_logits.softmax(1)

    def distil_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave no gradient if the loss is above the threshold: the step that follows only counts."""
        terms = super().distil_step(batch)
        if terms["loss_ratio"] > self.threshold:
            self.zero_grad(set_to_none=True)
        return terms

    def final_labels(self) -> Tensor:
        """The learned labels."""
        return self.label_logits.detach().softmax(1)
