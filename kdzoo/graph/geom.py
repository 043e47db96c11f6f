"""GEOM: trajectory matching without edges, by experts that learn the easy nodes first, with learned soft labels.

    loss = |theta_N - tau_{s+M}| / |tau_s - tau_{s+M}| + beta * KL(y' || f(X'; tau_last)),    s ~ U{0 ... S(t) - 1}

The experts begin with the labelled nodes whose surroundings are of one class and take in the mixed ones later. The
window S(t) grows from `first_max_start` to `max_start`: early parts of a trajectory teach easy nodes, late ones hard
ones. The labels y' are learned log-probabilities; they start as what an expert says of the starting nodes, its first
choice corrected where it is wrong. The second term keeps the condensed nodes familiar to a fully trained expert.
Source: Zhang et al., arXiv 2402.05011, algorithm 1; the defaults are the authors' for Cora. The distance is not squared
in their code. They grow the window by an epoch per iteration; here over `growth` of the run.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.graph.condenser import Init
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.experts import Experts
from kdzoo.graph.trajectory_matching import InnerLoop, TrajectoryMatching
from kdzoo.losses.matching import distance_ratio

CARD = Card(
    title="Navigating Complexity: Toward Lossless Graph Condensation via Expanding Window Matching",
    arxiv="2402.05011",
    year=2024,
    family="graph",
    task="graph condensation",
    teacher="trajectories of experts",
    student="a condensed graph",
    data="a graph with some labelled nodes",
    code="https://github.com/NUS-HPC-AI-Lab/GEOM",
    tags=("graph condensation", "trajectory matching", "soft labels", "curriculum", "without edges"),
)


def corrected(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Where the first choice is wrong, the true class gets the first choice's value; nothing else changes.

    Args:
        log_probabilities: [n, C].
        labels: int64 [n].
    """
    top, choice = log_probabilities.max(1)
    own = log_probabilities.gather(1, labels[:, None])[:, 0]
    return log_probabilities.scatter(1, labels[:, None], torch.where(choice == labels, own, top)[:, None])


class GEOM(TrajectoryMatching):
    """Expanding window matching.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        first_max_start: In the beginning a piece starts before this epoch.
        max_start: In the end a piece starts before this epoch.
        growth: Fraction of the run over which the window grows, in (0, 1].
        inner: How a network is trained on the condensed nodes.
        experts: How the experts are trained.
        beta: Weight of the divergence from the fully trained expert.
        lr_feat: Learning rate of the features.
        lr_label: Learning rate of the labels' SGD, with momentum 0.9; 0 keeps them as they start.
        lr_lr: Learning rate of the learned rate.
        lr_start: The learned rate at the start.
        network: `gcn` or `sgc`.
        hidden: Width of a GCN.
        layers: Layers of a GCN, hops of an SGC.
        evaluation: How the condensed graph is judged.
    """

    label_logits: nn.Parameter

    def __init__(
        self,
        rate: float = 0.5,
        init: Init = "k_center",
        expert_epochs: int = 1400,
        first_max_start: int = 50,
        max_start: int = 200,
        growth: float = 0.1,
        inner: InnerLoop = InnerLoop(steps=2500),
        experts: Experts = Experts(epochs=3000, easy=0.75),
        beta: float = 0.01,
        lr_feat: float = 1e-4,
        lr_label: float = 5e-5,
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
        if not 0 < first_max_start <= max_start or not 0 < growth <= 1:
            raise UserError(
                f"GEOM: the window cannot grow from {first_max_start} to {max_start} over {growth} of the run: give "
                "0 < first_max_start <= max_start, and growth in (0, 1]."
            )
        self.first_max_start, self.growth, self.beta, self.lr_label = first_max_start, growth, beta, lr_label

    def build(self, spec: dict[str, Any]) -> None:
        """Make the condensed nodes and their labels."""
        super().build(spec)
        self.label_logits = nn.Parameter(torch.zeros(len(self.x), spec["classes"]))

    def configure_optimizers(self) -> Any:
        """Adam on the features, SGD on the learned rate and on the labels."""
        optimizers = super().configure_optimizers()
        return [*optimizers, torch.optim.SGD([self.label_logits], lr=self.lr_label, momentum=0.9)]

    def start(self) -> None:
        """Choose the nodes, and ask an expert for their labels."""
        super().start()
        weights = self.trajectories.read(0, [self.experts.last])[0]
        said = log_softmax(self.student(weights, self.x), 1)
        self.label_logits.copy_(corrected(said, self.labels))

    def last_start(self) -> int:
        """The end of this iteration's window."""
        grown = (self.max_start - self.first_max_start) * min(1.0, self.progress / self.growth)
        return self.first_max_start + int(grown)

    def inner_loss(self, logits: Tensor, *soft: Tensor) -> Tensor:
        """KL(y' || p), with y' as it is learned: nothing keeps it a distribution."""
        return kl_div(log_softmax(logits, 1), soft[0], reduction="batchmean", log_target=True)

    def distil_step(self) -> dict[str, Tensor]:
        """Leave the gradient of one piece, and return `loss_ratio` and `familiar`."""
        expert, start, target = self.draw()
        last = self.trajectories.read(expert, [self.experts.last])[0]
        with torch.enable_grad():
            end = self.inner_loop(start, self.label_logits)
            ratio = self.checked(distance_ratio(end, start, target).sqrt())
            familiar = self.beta * self.inner_loss(self.student(last, self.x), self.label_logits)
        self.backward_to(ratio + familiar, [self.x, self.learned_lr, self.label_logits])
        return {"loss_ratio": ratio, "familiar": familiar}

    def final_labels(self) -> Tensor:
        """The learned labels as probabilities."""
        return self.label_logits.detach().softmax(1)
