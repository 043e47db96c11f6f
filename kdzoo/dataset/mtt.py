"""Matching training trajectories: a network that learns from the synthetic set goes where one with real data goes.

    loss = |theta_N - tau_{s+M}|^2 / |tau_s - tau_{s+M}|^2

tau_s are the parameters of an expert after s epochs on real images; from theta_0 = tau_s, N steps on the synthetic set
with a learned rate lead to theta_N. The derivative goes through all of them. The augmentation of the inner loop is not
siamese: nothing real is there to share it with.
Source: Cazenavette et al., arXiv 2203.11932, algorithm 1. The defaults are for CIFAR-10 with 10 images per class, as in
table 6 of arXiv 2211.11004, which both methods were compared under.
"""

from kdzoo.card import Card
from kdzoo.dataset.distiller import Init
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.experts import Experts
from kdzoo.dataset.matching import InnerLoop, TrajectoryMatching

CARD = Card(
    title="Dataset Distillation by Matching Training Trajectories",
    arxiv="2203.11932",
    year=2022,
    family="dataset",
    task="dataset distillation",
    teacher="trajectories of experts",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/GeorgeCazenavette/mtt-distillation",
    headline="CIFAR-10, 10 images per class: 65.4 % (ConvNet)",
    tags=("dataset distillation", "trajectory matching", "baseline"),
)


class MTT(TrajectoryMatching):
    """Trajectory matching.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images or from noise.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        max_start: S; a piece of a trajectory starts after 0 ... S - 1 epochs.
        inner: How a network is trained on the synthetic set.
        experts: How the experts are trained.
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
        init: Init = "real",
        expert_epochs: int = 2,
        max_start: int = 20,
        inner: InnerLoop = InnerLoop(),
        experts: Experts = Experts(),
        lr_img: float = 100.0,
        lr_lr: float = 1e-5,
        lr_start: float = 0.001,
        momentum: float = 0.5,
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
