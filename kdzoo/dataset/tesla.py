"""TESLA: trajectory matching in memory that does not grow with the inner loop, and soft labels from an expert.

    |theta_N - tau_{s+M}|^2 = |D + a * sum_i g_i|^2,   D = tau_{s+M} - tau_s,   g_i = grad loss(theta_i; x_i)
    d/dx_i = 2 a (D + a * sum_j g_j)^T dg_i/dx_i

so that each step's part of the derivative is taken alone, with theta_i as it came; see `kdzoo.trajectories.unroll` on
what this leaves out, and `inner.unroll: checkpoint` for the exact derivative in nearly as little memory. With
`soft_labels`, the labels of an iteration are what the expert that is matched says of the synthetic images at the end of
the piece, and the last ones are exported.
Source: Cui et al., arXiv 2211.10586, section 3; the defaults are the command for CIFAR-10 with one image per class in
the authors' code, which takes the sign of D the other way round in its comments, not in what it computes.
"""

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.dataset.distiller import Init
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.experts import Experts
from kdzoo.dataset.matching import InnerLoop, Segment, TrajectoryMatching

CARD = Card(
    title="Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory",
    arxiv="2211.10586",
    year=2023,
    family="dataset",
    task="dataset distillation",
    teacher="trajectories of experts",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/justincui03/tesla",
    tags=("dataset distillation", "trajectory matching", "memory"),
)


class TESLA(TrajectoryMatching):
    """Trajectory matching with constant memory.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images or from noise.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        max_start: S; a piece of a trajectory starts after 0 ... S - 1 epochs.
        inner: How a network is trained on the synthetic set.
        experts: How the experts are trained.
        soft_labels: Take the labels from the expert.
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
        ipc: int = 1,
        init: Init = "real",
        expert_epochs: int = 2,
        max_start: int = 5,
        inner: InnerLoop = InnerLoop(steps=50, unroll="tesla"),
        experts: Experts = Experts(),
        soft_labels: bool = False,
        lr_img: float = 1000.0,
        lr_lr: float = 1e-7,
        lr_start: float = 0.01,
        momentum: float = 0.5,
        zca: bool = False,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(
            ipc, init, expert_epochs, max_start, inner, experts,
            lr_img, lr_lr, lr_start, momentum, zca, network, width, depth, evaluation,
        )  # fmt: skip
        self.soft_labels = soft_labels

    def build(self, spec: dict[str, object]) -> None:
        """Make the synthetic set; its soft labels start as certain ones."""
        super().build(spec)
        if self.soft_labels:
            self.labels = torch.nn.functional.one_hot(self.labels, int(spec["classes"])).float()  # type: ignore[call-overload]

    @torch.no_grad()
    def inner_labels(self, segment: Segment) -> Tensor:
        """The labels, which are asked of the expert if they are soft."""
        if self.soft_labels:
            parts = self.images.split(self.inner.batch_size or len(self.images))
            logits = [self.student(segment.points[-1], part) for part in parts]
            self.labels.copy_(torch.cat(logits).softmax(1))
        return self.labels
