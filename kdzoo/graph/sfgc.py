"""SFGC: condensed nodes without edges lead a network where the whole graph leads an expert.

    loss = |theta_N - tau_{s+M}|^2 / |tau_s - tau_{s+M}|^2

tau_s are the parameters of a GCN after s epochs on the whole graph; from theta_0 = tau_s, N steps on the condensed
nodes alone with a learned rate lead to theta_N. What the edges say goes into the features.
Source: Zheng et al., arXiv 2306.02664, eq. 4 to 6; the defaults are the authors' for Cora at half the labelled nodes,
2,000 iterations. The authors choose the best set of all iterations by a graph neural tangent kernel on validation
nodes; here the last one is the result.
"""

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.graph.condenser import Init
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.experts import Experts
from kdzoo.graph.trajectory_matching import InnerLoop, TrajectoryMatching
from kdzoo.losses.matching import distance_ratio

CARD = Card(
    title="Structure-free Graph Condensation: From Large-scale Graphs to Condensed Graph-free Data",
    arxiv="2306.02664",
    year=2023,
    family="graph",
    task="graph condensation",
    teacher="trajectories of experts",
    student="a condensed graph",
    data="a graph with some labelled nodes",
    code="https://github.com/Amanda-Zheng/SFGC",
    tags=("graph condensation", "trajectory matching", "without edges"),
)


class SFGC(TrajectoryMatching):
    """Trajectory matching without edges.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        max_start: S; a piece of a trajectory starts after 0 ... S - 1 epochs.
        inner: How a network is trained on the condensed nodes.
        experts: How the experts are trained.
        lr_feat: Learning rate of the features.
        lr_lr: Learning rate of the learned rate.
        lr_start: The learned rate at the start.
        network: `gcn` or `sgc`.
        hidden: Width of a GCN.
        layers: Layers of a GCN, hops of an SGC.
        evaluation: How the condensed graph is judged.
    """

    def __init__(
        self,
        rate: float = 0.5,
        init: Init = "k_center",
        expert_epochs: int = 1200,
        max_start: int = 30,
        inner: InnerLoop = InnerLoop(),
        experts: Experts = Experts(),
        lr_feat: float = 1e-4,
        lr_lr: float = 1e-6,
        lr_start: float = 0.5,
        network: str = "gcn",
        hidden: int = 256,
        layers: int = 2,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(
            rate, init, expert_epochs, max_start, inner, experts, lr_feat, lr_lr, lr_start, network, hidden, layers,
            evaluation,
        )  # fmt: skip

    def distil_step(self) -> dict[str, Tensor]:
        """Leave the gradient of one piece, and return `loss_ratio`."""
        _, start, target = self.draw()
        with torch.enable_grad():
            ratio = self.checked(distance_ratio(self.inner_loop(start), start, target))
        self.backward_to(ratio, [self.x, self.learned_lr])
        return {"loss_ratio": ratio}
