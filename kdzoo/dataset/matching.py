"""`TrajectoryMatching`: what methods share that let a synthetic set lead a network where real images lead an expert.

    loss = |theta_N - tau_{s+M}|^2 / |tau_s - tau_{s+M}|^2

tau is an expert's trajectory, drawn anew in every iteration as its start s; theta_0 = tau_s, and theta_N is where N
steps on the synthetic set lead with the learned rate. The derivative goes through these steps to the pixels and to the
rate, and to labels where they are learned.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.console import say
from kdzoo.datamodules.augment import hash32
from kdzoo.dataset.augment import DSA, apply, draw, operations
from kdzoo.dataset.distiller import Distiller, Init
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.experts import Experts, Trajectories
from kdzoo.dataset.networks import make
from kdzoo.dataset.preprocessing import ZCA
from kdzoo.errors import UserError
from kdzoo.losses.matching import distance_ratio
from kdzoo.trajectories.flat import Flat
from kdzoo.trajectories.unroll import Mode, unroll

CHUNK = 256  # images of the training part at a time
PATIENCE = 100  # iterations without progress before a warning
STUCK = 0.95  # a loss ratio that is none
FLOOR = 1e-5  # of the learned rate; the authors' code has none, and a negative rate there climbs


@dataclass(frozen=True)
class InnerLoop:
    """How a network is trained on the synthetic set, and how that is differentiated.

    Args:
        steps: Steps N.
        batch_size: Synthetic images per step, in random order; None: all of them.
        momentum: Heavy-ball momentum.
        augmentation: Operations of `kdzoo.dataset.augment`, drawn for each step; or `none`. It is not siamese.
        unroll: See `kdzoo.trajectories.unroll`.
        last: Steps that `truncated` differentiates.
    """

    steps: int = 30
    batch_size: int | None = None
    momentum: float = 0.0
    augmentation: str = DSA
    unroll: Mode = "full"
    last: int = 8

    def __post_init__(self) -> None:
        if self.steps < 1 or self.last < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise UserError("An inner loop needs steps, last and batch_size of 1 or more.")
        operations(self.augmentation)


@dataclass(frozen=True)
class Segment:
    """A piece of a trajectory.

    Attributes:
        expert, epoch: Whose, and after which epoch it starts.
        points: The parameters from there on, float32 [M + 1, P].
    """

    expert: int
    epoch: int
    points: Tensor


class TrajectoryMatching(Distiller):
    """Matches trajectories; a subclass changes what its paper changes.

    Logged beside `loss_ratio`, the loss, is `learned_lr`; a warning says when either is where nothing is learned.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images or from noise.
        expert_epochs: Epochs M of an expert that the inner loop is to make.
        max_start: S; a piece of a trajectory starts after 0 ... S - 1 epochs.
        inner: How a network is trained on the synthetic set.
        experts: How the experts are trained, before the first iteration, unless the cache has them.
        lr_img: Learning rate of the pixels.
        lr_lr: Learning rate of the learned rate.
        lr_start: The learned rate at the start.
        momentum: Of the SGD of both.
        zca: Whiten the images (`kdzoo.dataset.preprocessing.ZCA`) in place of a standardisation.
        network: Architecture that distils and judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    learned_lr: nn.Parameter
    trajectories: Trajectories
    student: Flat

    def __init__(
        self,
        ipc: int,
        init: Init,
        expert_epochs: int,
        max_start: int,
        inner: InnerLoop,
        experts: Experts,
        lr_img: float,
        lr_lr: float,
        lr_start: float,
        momentum: float,
        zca: bool,
        network: str,
        width: int,
        depth: int | None,
        evaluation: Evaluation,
    ) -> None:
        super().__init__(ipc, init, lr_img, momentum, network, width, depth, evaluation)
        self.inner = InnerLoop(**inner) if isinstance(inner, dict) else inner
        self.experts = Experts(**experts) if isinstance(experts, dict) else experts
        self.expert_epochs, self.max_start, self.zca = expert_epochs, max_start, zca
        self.lr_lr, self.lr_start = lr_lr, lr_start
        if expert_epochs < 1 or max_start < 1 or lr_start <= 0:
            raise UserError(
                f"{type(self).__name__} needs expert_epochs and max_start of 1 or more, and lr_start above 0."
            )
        if (last := max_start - 1 + expert_epochs) > self.experts.epochs:
            raise UserError(
                f"{type(self).__name__}: max_start={max_start} and expert_epochs={expert_epochs} reach epoch {last} of "
                f"experts that have {self.experts.epochs}: give experts.epochs={last} or more, or a smaller max_start."
            )

    def build(self, spec: dict[str, Any]) -> None:
        """Make the synthetic set, its learned rate, and the network that is trained on it."""
        super().build(spec)
        if self.zca:
            self.preprocess = ZCA(spec)
        self.learned_lr = nn.Parameter(torch.tensor(self.lr_start))
        # No module of this one: its parameters are those of the experts.
        self.__dict__["student"] = Flat(make(self.network, spec, self.width, self.depth))
        self.ratios: deque[float] = deque(maxlen=PATIENCE)
        self.warned: set[str] = set()

    def configure_optimizers(self) -> Any:
        """SGD on the pixels and on the learned rate."""
        groups: list[dict[str, Any]] = [{"params": [self.images]}, {"params": [self.learned_lr], "lr": self.lr_lr}]
        return torch.optim.SGD(groups, lr=self.lr_img, momentum=self.momentum_img)

    def study(self) -> None:
        """Take the statistics for the whitening, and train the experts that are missing."""
        if isinstance(self.preprocess, ZCA) and not self.ready:
            rows = torch.arange(len(self.real)).split(CHUNK)
            self.preprocess.fit(lambda: (self.real.pixels(part, self.device) for part in rows), len(self.real))
        shape = (self.network, self.width, self.depth)
        spec = dict(self.spec or {})
        self.trajectories = Trajectories(self.real, self.preprocess, shape, spec, self.experts, self.device)
        if self.trajectories.buffer is not None:
            self.provenance["experts"] = self.trajectories.buffer.folder.name
        self.trainer.strategy.barrier("experts")
        self.student.network.to(self.device)

    # ---------------------------------------------------------------------------------------------- an iteration

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `loss_ratio`."""
        segment = self.draw_segment()
        start, target = segment.points[0], segment.points[-1]
        end = self.inner_loop(start, self.inner_labels(segment))[-1]
        return {"loss_ratio": self.checked(distance_ratio(end, start, target), segment)}

    def window(self) -> tuple[int, int]:
        """The first epoch that a piece may start after, and the first that it may not."""
        return 0, self.max_start

    def draw_segment(self) -> Segment:
        """A piece of a trajectory: experts one after the other in random order, a random start."""
        turn, place = divmod(self.trainer.global_step, self.experts.count)
        order = torch.Generator().manual_seed(int(hash32(self.seed, turn)))
        expert = int(torch.randperm(self.experts.count, generator=order)[place])
        epoch = int(torch.randint(*self.window(), ()))
        return Segment(
            expert, epoch, self.trajectories.read(expert, list(range(epoch, epoch + self.expert_epochs + 1)))
        )

    def inner_labels(self, segment: Segment) -> Tensor:
        """Labels of the inner loop: int64 [n], or probabilities [n, classes], which may ask for a gradient."""
        return self.labels

    def inner_loop(
        self, start: Tensor, labels: Tensor, weight: float = 1.0, keep: tuple[int, ...] = ()
    ) -> list[Tensor]:
        """Train the network on the synthetic set.

        Args:
            start: Its parameters, [P].
            labels: As `inner_labels` gives them.
            weight: Factor of the cross-entropy.
            keep: After how many steps the parameters are wanted, beside the last.

        Returns:
            Parameters [P], differentiable in the images, in the learned rate, and in labels that ask for it.
        """
        how, rows = self.inner, list[Tensor]()
        while len(rows) < how.steps:
            rows += torch.randperm(len(self.images)).split(how.batch_size or len(self.images))
        draws = [draw(len(chunk), how.augmentation) for chunk in rows[: how.steps]]
        rows = [chunk.to(self.device) for chunk in rows[: how.steps]]

        def loss(parameters: Tensor, step: int, images: Tensor, *soft: Tensor) -> Tensor:
            logits = self.student(parameters, apply(images[rows[step]], draws[step]))
            return weight * cross_entropy(logits, (soft[0] if soft else labels)[rows[step]])

        learned = (self.images, labels) if labels.requires_grad else (self.images,)
        return unroll(loss, start, self.learned_lr, learned, how.steps, how.momentum, how.unroll, how.last, keep)

    def checked(self, ratio: Tensor, segment: Segment) -> Tensor:
        """The ratio; a `UserError` if the inner loop has diverged."""
        if not torch.isfinite(ratio):
            raise UserError(
                f"The inner loop from epoch {segment.epoch} of expert {segment.expert} became NaN with a learned rate "
                f"of {float(self.learned_lr.detach()):.3g}: lower lr_start, lr_lr or lr_img."
            )
        self.ratios.append(float(ratio.detach()))
        return ratio

    def after_step(self) -> None:
        """Keep the learned rate positive, and say when nothing is learned."""
        with torch.no_grad():
            self.learned_lr.clamp_(min=FLOOR)
        if float(self.learned_lr.detach()) <= FLOOR:
            self.warn_once(
                "The learned rate has fallen to its floor, where the images do nothing: lower lr_lr or lr_img."
            )
        if len(self.ratios) == PATIENCE and min(self.ratios) > STUCK:
            self.warn_once(
                f"The loss ratio has been above {STUCK} for {PATIENCE} iterations, so nothing is learned: try another "
                "lr_img, a higher lr_start, more inner steps, or a smaller max_start."
            )

    def warn_once(self, text: str) -> None:
        """Print a warning, once in a fit."""
        if text not in self.warned:
            self.warned.add(text)
            say("warning", text)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Make an iteration, and log the learned rate too."""
        loss = super().training_step(batch, batch_idx)
        self.terms["train/learned_lr"] = self.learned_lr.detach().clone()
        self.log("train/learned_lr", self.terms["train/learned_lr"], prog_bar=True)
        return loss
