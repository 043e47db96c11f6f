"""`Generations`: networks that are trained one after the other in one run, each on what the ones before it say."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.errors import UserError
from kdzoo.image.classifier import Classifier
from kdzoo.optim import Optim
from kdzoo.students.build import build
from kdzoo.students.network import ImageNetwork
from kdzoo.teachers import sources
from kdzoo.teachers.sources import Teachers


class Generations(Classifier):
    """Trains its members in equal parts of the run; a subclass adds the `losses` of the one whose turn it is.

    The schedule starts anew with each member. All members are in the checkpoint; the last one is what is exported.

    Args:
        architectures: The members', in order.
        teacher: Who teaches the first; None: the labels alone.
        weights: Where the first starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch, as
            the others do).
        optim: The optimizer and its schedule.

    Attributes:
        members: The networks.
        generation: Whose turn it is, from 0; after a fit the last.
    """

    reached: Tensor

    def __init__(
        self, architectures: Sequence[str], teacher: Teachers | None, weights: str | None, optim: Optim
    ) -> None:
        if not architectures:
            raise UserError(f"{type(self).__name__} trains networks one after the other: give at least one.")
        super().__init__(architectures[-1], teacher, weights, optim)
        self.architectures = list(architectures)
        self.generation = 0

    def make_student(self, spec: dict[str, Any]) -> None:
        """Make the members."""
        weights = [sources.weights_file(self.weights), *[None] * (len(self.architectures) - 1)]
        self.members = nn.ModuleList(build(name, spec, w) for name, w in zip(self.architectures, weights))
        self.register_buffer("reached", torch.zeros((), dtype=torch.int64))

    @property
    def student(self) -> ImageNetwork:  # type: ignore[override]
        """The member whose turn it is."""
        return self.members[int(self.reached)]  # type: ignore[return-value]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Pass on to the next member when its time has come; the others are in evaluation mode."""
        count = len(self.members)
        self.generation = min(count - 1, int(self.trainer.global_step * count // self.total_steps))
        self.reached.fill_(self.generation)
        for number, member in enumerate(self.members):
            member.train(number == self.generation)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep weight decay and momentum from the members whose turn it is not."""
        for number, member in enumerate(self.members):
            if number != self.generation:
                for parameter in member.parameters():
                    parameter.grad = None

    def configure_optimizers(self) -> Any:
        """Optimise the members under a schedule that starts anew with each."""
        trained = (p for p in self.parameters() if p.requires_grad)
        return self.optim.configure(trained, self.total_steps, cycles=len(self.members))

    def previous(self, batch: dict[str, Tensor]) -> Tensor | None:
        """What the one before says, logits [B, C]: for the first the teacher, if there is one."""
        if self.generation == 0:
            return self.teacher(batch) if self.teachers else None
        with torch.no_grad():
            return self.members[self.generation - 1](batch["image"]).float()

    def idle(self) -> Tensor:
        """Zero, in which every other member takes part, as distributed training demands."""
        others = (member for number, member in enumerate(self.members) if number != self.generation)
        zero = torch.zeros((), device=self.device)
        return zero + sum(0 * parameter.sum() for member in others for parameter in member.parameters())
