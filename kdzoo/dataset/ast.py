"""AST: smooth experts of high quality, and a student that keeps to them.

    loss = sum_{i=1..M} |theta_{iN/M} - tau_{s+i}|^2 / |theta_0 - tau_{s+i}|^2

Eight ingredients, each with a switch (in brackets, what leaves it out):
  1. Experts by SGD with momentum and weight decay, the rate times 0.6 in the middle (experts.momentum,
     experts.weight_decay: 0; experts.decay: 1).
  2. Clipping loss: their cross-entropy times 0.5, 0.55, ... 0.95 in the first ten epochs (experts.clip: []).
  3. Gradient penalty: 2 * mean (|d sum of logits / d pixel| - 1)^2, normed over the channels of a pixel, on images that
     are not augmented (experts.gradient_penalty: 0).
  4. Representative start: the image nearest to each centre of k-means with k = ipc in a class, by the logits of a fully
     trained expert (init: real).
  5. Balanced inner loss: with h = S // 2 the cross-entropy times log_5(s - h + 8) for s >= h, else over
     log_5(h - s + 8) (balance: false).
  6. Heavy-ball momentum in the inner loop (inner.momentum: 0).
  7. Intermediate matching: the terms i < M of the loss, each with weight 1, or i / M (intermediate: none).
  8. Perturbed start: theta_0 = tau_s, with every convolution w + alpha * w * d / |d|, d ~ N(0, 1) (perturbation: 0). It
     is what the denominators start from too.

Source: Shen et al., arXiv 2310.10541, and the authors' code, from whose scripts for CIFAR-10 with 10 images per class
the defaults are. Their code always clusters into ten and takes the ipc / 10 nearest images of each (`clusters: 10`),
which leaves no image for ipc = 1; the momentum of the inner loop is in the code alone.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.experts import Experts
from kdzoo.dataset.matching import CHUNK, InnerLoop, TrajectoryMatching
from kdzoo.errors import UserError
from kdzoo.losses.matching import distance_ratio
from kdzoo.selection import k_means, nearest_to

CARD = Card(
    title="Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories",
    arxiv="2310.10541",
    year=2023,
    family="dataset",
    task="dataset distillation",
    teacher="smooth trajectories of experts",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/shenjiyuan123/AST-Alignment-with-Smooth-Expert",
    tags=("dataset distillation", "trajectory matching", "gradient penalty"),
)

CLIP = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
Intermediate = Literal["sum", "adaptive", "none"]


def balance_factor(epoch: int, max_start: int) -> float:
    """Factor of the inner cross-entropy for a start after `epoch`, of 0 ... `max_start` - 1."""
    middle = max_start // 2
    return math.log(epoch - middle + 8, 5) if epoch >= middle else 1 / math.log(middle - epoch + 8, 5)


class AST(TrajectoryMatching):
    """Alignment with smooth experts.

    Args:
        ipc: Synthetic images per class.
        init: Start from representative real images, from random ones, or from noise.
        clusters: Clusters per class of the representative start; None: as many as images. Else the same number of
            images is taken around each centre.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        max_start: S; a piece of a trajectory starts after 0 ... S - 1 epochs.
        inner: How a network is trained on the synthetic set.
        experts: How the experts are trained.
        balance: Weigh the inner cross-entropy by the start.
        intermediate: Match the epochs in between too: with weight 1 each, with i / M (`adaptive`), or not.
        perturbation: Strength of the start's perturbation.
        lr_img: Learning rate of the pixels.
        lr_lr: Learning rate of the learned rate.
        lr_start: The learned rate at the start.
        momentum: Of the SGD of both.
        zca: Whiten the images.
        network: Architecture that distils and judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        ipc: int = 10,
        init: Literal["representative", "real", "noise"] = "representative",
        clusters: int | None = None,
        expert_epochs: int = 2,
        max_start: int = 20,
        inner: InnerLoop = InnerLoop(momentum=0.9),
        experts: Experts = Experts(
            lr=0.003, momentum=0.9, weight_decay=1e-3, decay=0.6, clip=CLIP, gradient_penalty=2.0
        ),
        balance: bool = True,
        intermediate: Intermediate = "sum",
        perturbation: float = 1.0,
        lr_img: float = 100.0,
        lr_lr: float = 1e-6,
        lr_start: float = 0.01,
        momentum: float = 0.5,
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
        self.representative, self.clusters = init == "representative", clusters or ipc
        if ipc % self.clusters:
            raise UserError(
                f"AST: {ipc} images per class are no equal parts of {clusters} clusters: leave clusters out."
            )
        if intermediate != "none" and self.inner.steps < expert_epochs:
            raise UserError(
                f"AST: {self.inner.steps} inner steps cannot meet each of {expert_epochs} epochs: give inner.steps="
                f"{expert_epochs} or more."
            )
        self.balance, self.intermediate, self.perturbation = balance, intermediate, perturbation

    @torch.no_grad()
    def start(self) -> None:
        """Choose the images that represent their class."""
        super().start()
        if self.representative:
            self.set_images(torch.cat([self.choose_representative(rows) for rows in self.real.rows]))

    def choose_representative(self, rows: Tensor) -> Tensor:
        """Rows of the representative images among those of a class."""
        weights = self.trajectories.read(0, [self.experts.epochs])[0]
        logits = torch.cat([self.student(weights, self.real_images(part)) for part in rows.split(CHUNK)])
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            centres = k_means(logits, self.clusters)
        # The nearest of every centre, then the second nearest ...
        return rows[nearest_to(centres.repeat(self.ipc // self.clusters, 1), logits).cpu()]

    # ---------------------------------------------------------------------------------------------- an iteration

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `loss_ratio`, and `intermediate` where it is matched."""
        segment = self.draw_segment()
        start = self.perturb(segment.points[0])
        factor = balance_factor(segment.epoch, self.max_start) if self.balance else 1.0
        epochs, steps = self.expert_epochs, self.inner.steps
        marks = [] if self.intermediate == "none" else [steps // epochs * i for i in range(1, epochs)]
        *between, end = self.inner_loop(start, self.inner_labels(segment), factor, tuple(marks))
        terms = {"loss_ratio": self.checked(distance_ratio(end, start, segment.points[-1]), segment)}
        if between:
            ratios = [distance_ratio(way, start, segment.points[i]) for i, way in enumerate(between, 1)]
            weights = [i / epochs if self.intermediate == "adaptive" else 1.0 for i in range(1, epochs)]
            terms["intermediate"] = torch.stack([weight * ratio for weight, ratio in zip(weights, ratios)]).sum()
        return terms

    def perturb(self, start: Tensor) -> Tensor:
        """A start [P] with changed convolutions."""
        if self.perturbation == 0:
            return start
        parts = []
        for weight in self.student.split(start):
            if weight.ndim == 4:
                noise = torch.randn(weight.shape).to(weight)
                weight = weight + self.perturbation * weight * noise / noise.norm()
            parts.append(weight.flatten())
        return torch.cat(parts)
