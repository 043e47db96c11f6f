"""Information multi-distillation: super-resolution by blocks that keep a part of their channels at each step.

    loss = L1(f(lr), hr)                                         the paper
           + output_weight * L1(f(lr), f_teacher(lr))            an extension of kdzoo, off without a teacher

"Distillation" in the paper is the splitting of channels inside a block (`IMDB`), not learning from a teacher: the
method is a network (`kdzoo.dense.imdn_network`) and plain training. The second term adds a larger network to copy.
Differs from the reference in a small number under the root of the attention's contrast, without which a constant
channel has no gradient but NaN. Networks for x3 and x4 start from that for x2 (`weights`), as the authors did.
Source: Hui, Gao, Yang and Wang, arXiv 1909.11856, sections 3 and 4.2.
"""

from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import l1_loss

from kdzoo.card import Card
from kdzoo.dense.super_resolver import SuperResolver
from kdzoo.dense.trained import load_teacher
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Lightweight Image Super-Resolution with Information Multi-distillation Network",
    arxiv="1909.11856",
    year=2019,
    family="dense",
    task="super-resolution",
    teacher="none; as an extension any larger super-resolution network",
    student="IMDN",
    data="photographs",
    code="Zheng222/IMDN",
    headline="Set5 x2/x3/x4: 38.00 / 34.36 / 32.21 dB luma PSNR, 694k to 715k parameters",
    tags=("super-resolution", "architecture", "label-free"),
)


class IMDN(SuperResolver):
    """Trains an information multi-distillation network.

    Args:
        features: Channels, 16 or more.
        blocks: Number of distillation blocks.
        lr: Learning rate of Adam at the start.
        stages: The rate is halved after each of so many equal parts of the run (every 200 of 1,000 epochs).
        optimizer: Another optimizer; its learning rate is halved in the same way.
        weights: Export of a run to start from; one for another scale gives all but its up-sampler.
        teacher: Extension, not in the paper: a larger network for the same scale, a recipe or a run's folder.
        output_weight: Extension: weight of the L1 distance to the teacher's output.
    """

    teacher: FrozenTeacher

    def __init__(
        self,
        features: int = 64,
        blocks: int = 6,
        lr: float = 2e-4,
        stages: int = 5,
        optimizer: OptimizerCallable | None = None,
        weights: str | None = None,
        teacher: Teachers | None = None,
        output_weight: float = 1.0,
    ) -> None:
        super().__init__("imdn", {"features": features, "blocks": blocks}, lr, stages, optimizer, weights)
        self.teachers = [] if teacher is None else sources.teachers(teacher)
        self.output_weight = output_weight

    def build(self, spec: dict[str, Any]) -> None:
        """Make the network, and the teacher if there is one."""
        super().build(spec)
        if self.teachers:
            self.teacher, self._teacher_summary = load_teacher(self.teachers, spec)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `l1`, and `output` if there is a teacher."""
        output = self.student(batch["lr"])  # [B, 3, s h, s w]
        terms = {"l1": l1_loss(output, batch["hr"])}
        if self.teachers:
            terms["output"] = self.output_weight * l1_loss(output, self.teacher(batch))
        return terms

    def prepare(self) -> None:
        """Train the teachers that are recipes and not in the cache."""
        sources.prepare(self.teachers)

    def teacher_summary(self) -> dict[str, Any] | None:
        """Say who teaches."""
        return self._teacher_summary if self.teachers else None
