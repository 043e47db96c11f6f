"""Progressive distillation into Mamba students: each learns what those before it have left, and all are added up.

    F_0 = 0,    F_m = F_(m-1) + s_m,    F_(m-1) frozen
    loss of s_m = alpha CE(F_m, y) + (1 - alpha) T^2 KL(softmax(z_t / T) || softmax(F_m / T))

The sum of the first m students answers for every m: more of them cost more and know more. Students take equal parts of
the run; the test tells accuracy and cost (in percent of the teacher's operations, the scans counted) of every sum, and
the export has all of them and each student.
Source: Medina et al., arXiv 2503.01727: weak learners of selective state space models, each trained on what its
predecessors left, L = alpha L_hard + (1 - alpha) L_soft. There is no code, and sums of logits in the manner of
boosting (as in B-DISTIL, arXiv 2302.10093) are our reading of how the students are put together; alpha, T and the
students' sizes are not the paper's. `residual: false` trains every student alone and averages them, to compare.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.card import Card
from kdzoo.console import count
from kdzoo.export.image import export_composed_network, export_image_network
from kdzoo.image.generations import Generations
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.metrics.flops import flops
from kdzoo.metrics.percent import Percent
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Mamba base PKD for efficient knowledge compression",
    arxiv="2503.01727",
    year=2025,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="several classifiers, Mamba's in the paper",
    data="images, labelled or not",
    headline="MNIST: seven students 98 % at 63 % of the teacher's FLOPs, one alone 72 % at 1 %",
    tags=("logits", "generations", "ensemble", "anytime"),
)


class Together(nn.Module):
    """Students as one: the sum of their logits, or the mean.

    Args:
        members: The students.
        average: Take the mean.
    """

    def __init__(self, members: Sequence[nn.Module], average: bool) -> None:
        super().__init__()
        self.members, self.scale = nn.ModuleList(members), 1 / len(members) if average else 1.0

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to logits [B, classes]."""
        return self.scale * torch.stack([member(image).float() for member in self.members]).sum(0)


class MambaPKD(Generations):
    """A sequence of small students that are added up.

    Args:
        students: timm architectures, in their order.
        teacher: A recipe's name, a `Teacher`, or several.
        alpha: Weight of the labels' term, in [0, 1].
        temperature: T.
        residual: Whether a student learns what those before it left; else each learns alone and the mean answers.
        weights: Where the first starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule, which starts anew with each student.
    """

    def __init__(
        self,
        students: Sequence[str],
        teacher: Teachers,
        alpha: float = 0.5,
        temperature: float = 4.0,
        residual: bool = True,
        weights: str | None = None,
        optim: Optim = Optim(name="adamw", lr=3e-3, weight_decay=0.05, schedule="cosine", warmup=0.1),
    ) -> None:
        super().__init__(students, teacher, weights, optim)
        self.alpha, self.temperature, self.residual = alpha, temperature, residual

    def build(self, spec: dict[str, Any]) -> None:
        """Add a score for each sum."""
        super().build(spec)
        self.prefix_scores = nn.ModuleList(Percent(spec["classes"], average="micro") for _ in self.members)

    @property
    def student(self) -> Any:  # type: ignore[override]
        """The students so far, as one."""
        return Together(list(self.members[: int(self.reached) + 1]), average=not self.residual)

    def summary(self) -> str:
        """Say how many students there are, and their size."""
        size = count(sum(parameter.numel() for parameter in self.members.parameters()))
        return f"{len(self.members)} students, {', '.join(dict.fromkeys(self.architectures))} ({size} parameters)"

    def configure_optimizers(self) -> Any:
        """Spare what timm's networks name in `no_weight_decay` the penalty; each schedule starts anew."""
        spared = {
            id(dict(member.network.named_parameters())[name])  # type: ignore[union-attr]
            for member in self.members
            if hasattr(member.network, "no_weight_decay")
            for name in member.network.no_weight_decay()  # type: ignore[operator]
        }
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.members.parameters() if id(p) not in spared]},
            {"params": [p for p in self.members.parameters() if id(p) in spared], "weight_decay": 0.0},
        ]
        filled = [group for group in groups if group["params"]]
        return self.optim.configure(filled, self.total_steps, cycles=len(self.members))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `kd` of the sum with the student whose turn it is."""
        total = self.members[self.generation](batch["image"]).float()  # [B, C]
        if self.residual and self.generation:
            with torch.no_grad():
                before = Together(list(self.members[: self.generation]), average=False)(batch["image"])
            total = total + before
        return {
            "ce": self.alpha * labelled_cross_entropy(total, batch["label"]),
            "kd": (1 - self.alpha) * kd(total, self.teacher(batch), self.temperature),
            "idle": self.idle(),
        }

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score every sum."""
        batch = self._labelled(batch)
        super().test_step(batch, batch_idx)
        so_far = torch.stack([member(batch["image"]).float() for member in self.members]).cumsum(0)
        for logits, score in zip(so_far, self.prefix_scores):  # a mean and a sum have one largest class
            score.update(logits, batch["label"])  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        """Log accuracy and cost of every sum, and the most that a student has taken away."""
        super().on_test_epoch_end()
        found = [float(score.compute()) for score in self.prefix_scores]  # type: ignore[operator]
        own = [flops(member, dict(self.spec or {})) for member in self.members]
        whole = sum(flops(network, dict(self.spec or {})) for network in self.teacher.networks)
        for number, accuracy in enumerate(found, start=1):
            self.log(f"test/accuracy_{number}", accuracy)
            self.log(f"test/flops_{number}", 100 * sum(own[:number]) / whole)
        self.log("test/drop", max([0.0, *(before - after for before, after in pairwise(found))]))
        for score in self.prefix_scores:
            score.reset()  # type: ignore[operator]

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the students as one, and each by itself in `student_1`, `student_2` ...: see `kdzoo.export.image`."""
        spec, together = dict(self.spec or {}), self.student.eval()
        how = "added up" if self.residual else "averaged"
        names = export_composed_network(together, spec, folder, f"{len(together.members)} students, {how}")
        for number, member in enumerate(together.members, start=1):
            written = export_image_network(member, spec, folder / f"student_{number}")
            names += [f"student_{number}/{name}" for name in written]
        return names
