"""`TrajectoryMatching`: condensed nodes lead a network where the whole graph leads an expert.

    theta_0 = tau_s;  N steps on the condensed nodes, without edges, with a learned rate;  theta_N ~ tau_{s+M}

tau are the parameters of an expert, in snapshots every few epochs; the derivative goes through all N steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.augment import hash32
from kdzoo.errors import UserError
from kdzoo.graph.condenser import Condenser, Init
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.experts import Experts, Trajectories
from kdzoo.graph.matrix import MatrixNetwork
from kdzoo.trajectories.flat import Flat
from kdzoo.trajectories.unroll import Mode, unroll

FLOOR = 1e-5  # of the learned rate; the authors' code has none, and a negative rate there climbs


@dataclass(frozen=True)
class InnerLoop:
    """How a network is trained on the condensed nodes, and how that is differentiated.

    Args:
        steps: Steps N, each on all of them.
        unroll: See `kdzoo.trajectories.unroll`.
        last: Steps that `truncated` differentiates.
    """

    steps: int = 500
    unroll: Mode = "checkpoint"
    last: int = 8

    def __post_init__(self) -> None:
        if self.steps < 1 or self.last < 1:
            raise UserError("An inner loop needs steps and last of 1 or more.")


class TrajectoryMatching(Condenser):
    """Matches trajectories; a subclass changes what its paper changes.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        max_start: S; a piece of a trajectory starts after 0 ... S - 1 epochs.
        inner: How a network is trained on the condensed nodes.
        experts: How the experts are trained, before the first iteration, unless the cache has them.
        lr_feat: Learning rate of the features' Adam.
        lr_lr: Learning rate of the learned rate's SGD, with momentum 0.5.
        lr_start: The learned rate at the start.
        network: `gcn` or `sgc`.
        hidden: Width of a GCN.
        layers: Layers of a GCN, hops of an SGC.
        evaluation: How the condensed graph is judged.
    """

    learned_lr: nn.Parameter
    trajectories: Trajectories
    student: Flat

    def __init__(
        self,
        rate: float,
        init: Init,
        expert_epochs: int,
        max_start: int,
        inner: InnerLoop,
        experts: Experts,
        lr_feat: float,
        lr_lr: float,
        lr_start: float,
        network: str,
        hidden: int,
        layers: int,
        evaluation: Evaluation,
    ) -> None:
        super().__init__(rate, init, lr_feat, evaluation)
        self.inner = InnerLoop(**inner) if isinstance(inner, dict) else inner
        self.experts = Experts(**experts) if isinstance(experts, dict) else experts
        self.expert_epochs, self.max_start = expert_epochs, max_start
        self.lr_lr, self.lr_start = lr_lr, lr_start
        self.shape = (network, hidden, layers)
        every = self.experts.every
        if expert_epochs < every or expert_epochs % every or max_start < 1 or lr_start <= 0:
            raise UserError(
                f"{type(self).__name__}: expert_epochs={expert_epochs} must be a multiple of experts.every={every}, "
                f"max_start={max_start} 1 or more, and lr_start={lr_start} above 0."
            )
        if (last := (max_start - 1) // every * every + expert_epochs) > self.experts.epochs:
            raise UserError(
                f"{type(self).__name__}: max_start={max_start} and expert_epochs={expert_epochs} reach epoch {last} of "
                f"experts that have {self.experts.epochs}: give experts.epochs={last} or more, or a smaller max_start."
            )

    def build(self, spec: dict[str, Any]) -> None:
        """Make the condensed nodes, the learned rate, and the network that is trained on them."""
        super().build(spec)
        self.learned_lr = nn.Parameter(torch.tensor(self.lr_start))
        # No module of this one: its parameters are those of the experts.
        name, hidden, layers = self.shape
        self.__dict__["student"] = Flat(MatrixNetwork(name, spec["features"], spec["classes"], hidden, layers))

    def configure_optimizers(self) -> Any:
        """Adam on the features, SGD on the learned rate."""
        return [super().configure_optimizers(), torch.optim.SGD([self.learned_lr], lr=self.lr_lr, momentum=0.5)]

    def study(self) -> None:
        """Train the experts that are missing."""
        given = (self.real, self.real_x, self.matrix, self.shape, dict(self.spec or {}), self.experts, self.device)
        self.trajectories = Trajectories(*given)
        if self.trajectories.buffer is not None:
            self.provenance["experts"] = self.trajectories.buffer.folder.name
        self.trainer.strategy.barrier("experts")
        self.student.network.to(self.device)

    # ---------------------------------------------------------------------------------------------- an iteration

    def draw(self) -> tuple[int, Tensor, Tensor]:
        """An expert, one after the other in random order, and its parameters at a random start and M epochs later."""
        turn, place = divmod(self.trainer.global_step, self.experts.count)
        order = torch.Generator().manual_seed(int(hash32(self.seed, turn)))
        expert = int(torch.randperm(self.experts.count, generator=order)[place])
        first = int(torch.randint(self.last_start(), ())) // self.experts.every
        start, target = self.trajectories.read(expert, [first, first + self.expert_epochs // self.experts.every])
        return expert, start, target

    def last_start(self) -> int:
        """The first epoch that a piece may not start after."""
        return self.max_start

    def inner_loss(self, logits: Tensor, *soft: Tensor) -> Tensor:
        """What the network minimises on the condensed nodes, of its logits [n, C] and learned labels if any."""
        return cross_entropy(logits, self.labels)

    def inner_loop(self, start: Tensor, *soft: Tensor) -> Tensor:
        """Train the network on the condensed nodes: parameters [P] to parameters [P], differentiable."""

        def loss(parameters: Tensor, step: int, x: Tensor, *soft: Tensor) -> Tensor:
            return self.inner_loss(self.student(parameters, x), *soft)

        how = self.inner
        return unroll(loss, start, self.learned_lr, (self.x, *soft), how.steps, mode=how.unroll, last=how.last)[-1]

    def checked(self, ratio: Tensor) -> Tensor:
        """The ratio; a `UserError` if the inner loop has diverged."""
        if not torch.isfinite(ratio):
            raise UserError(
                f"The inner loop became NaN with a learned rate of {float(self.learned_lr.detach()):.3g}: lower "
                "lr_start, lr_lr or lr_feat."
            )
        return ratio

    def after_step(self) -> None:
        """Let the other optimizers step, and keep the learned rate positive."""
        for optimizer in self.optimizers()[1:]:  # type: ignore[index]
            optimizer.optimizer.step()  # not counted: an iteration is one step
        with torch.no_grad():
            self.learned_lr.clamp_(min=FLOOR)
        self.log("train/learned_lr", self.learned_lr.detach().clone(), prog_bar=True)
