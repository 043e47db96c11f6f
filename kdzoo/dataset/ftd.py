"""Flat trajectory distillation: trajectory matching towards experts that look for flat minima, and an averaged set.

    loss = |theta_N - tau_{s+M}|^2 / |tau_s - tau_{s+M}|^2,      average <- d * average + (1 - d) * images

A network that starts to learn from the synthetic set starts from where its own steps led, not from an expert's
snapshot: errors accumulate. In flat regions of the loss they stay small, so the experts are trained by adaptive GSAM.
What is judged and exported is the moving average of the images.
Source: Du et al., arXiv 2211.11004, algorithm 1 and table 6 (the defaults: CIFAR-10, 10 images per class); rho = 0.01
is the authors' script's. The authors' code tests the average with the network that the images themselves have just
trained; here every network is fresh.
"""

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.dataset.distiller import Init
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.experts import Experts
from kdzoo.dataset.matching import InnerLoop, TrajectoryMatching
from kdzoo.errors import UserError

CARD = Card(
    title="Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation",
    arxiv="2211.11004",
    year=2023,
    family="dataset",
    task="dataset distillation",
    teacher="flat trajectories of experts",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/AngusDujw/FTD-distillation",
    headline="CIFAR-10, 10 images per class: 66.6 % (ConvNet)",
    tags=("dataset distillation", "trajectory matching", "sharpness"),
)


class FTD(TrajectoryMatching):
    """Flat trajectory distillation.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images or from noise.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        max_start: S; a piece of a trajectory starts after 0 ... S - 1 epochs.
        inner: How a network is trained on the synthetic set.
        experts: How the experts are trained; `rho` and `alpha` are GSAM's.
        lr_img: Learning rate of the pixels.
        lr_lr: Learning rate of the learned rate.
        lr_start: The learned rate at the start.
        momentum: Of the SGD of both.
        ema: Decay d of the images' average in an iteration, in [0, 1); 0 is no average.
        zca: Whiten the images.
        network: Architecture that distils and judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    average: Tensor

    def __init__(
        self,
        ipc: int = 10,
        init: Init = "real",
        expert_epochs: int = 2,
        max_start: int = 20,
        inner: InnerLoop = InnerLoop(),
        experts: Experts = Experts(rho=0.01, alpha=0.3),
        lr_img: float = 100.0,
        lr_lr: float = 1e-5,
        lr_start: float = 0.001,
        momentum: float = 0.5,
        ema: float = 0.9995,
        zca: bool = True,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(
            ipc, init, expert_epochs, max_start, inner, experts,
            lr_img, lr_lr, lr_start, momentum, zca, network, width, depth, evaluation,
        )  # fmt: skip
        if not 0 <= ema < 1:
            raise UserError(f"FTD: an average with the decay ema={ema} never moves or grows: give 0 ... 0.9999.")
        self.ema = ema

    def build(self, spec: dict[str, object]) -> None:
        """Make the synthetic set and its average."""
        super().build(spec)
        self.register_buffer("average", torch.zeros_like(self.images))

    def start(self) -> None:
        """Give both the same start."""
        super().start()
        self.average.copy_(self.images.detach())

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the average follow."""
        super().after_step()
        self.average.mul_(self.ema).add_(self.images, alpha=1 - self.ema)

    def final_images(self) -> Tensor:
        """The average."""
        return self.average
