"""Contrastive representation distillation: student and teacher agree on a sample more than on any other.

    loss = CE(z_s, y) + crd_weight * (NCE(student's embedding, teacher's memory) + NCE(teacher's, student's memory))

Two memories hold an embedding of every training sample, each the moving average of what its network says. A sample's K
negatives are drawn evenly from all samples by a hash of its index and the step: the same on any number of ranks, and in
a resumed run. The constants Z are those of the first batch. The memories and Z are in the checkpoint. With labels the
authors also draw negatives of other classes only; here labels may be missing, so none is asked.
Source: Tian et al., arXiv 1910.10699, eq. 10, 17-19, and the authors' code (K = 16384, tau = 0.07, momentum 0.5,
weight 0.8).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdzoo.card import Card
from kdzoo.datamodules.augment import hash32
from kdzoo.image.memory import SampleMemory, samples_of
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import noise_contrast
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.ranks import global_batch
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Contrastive Representation Distillation",
    arxiv="1910.10699",
    year=2020,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/HobbitLong/RepDistiller",
    headline="CIFAR-100 ResNet32x4 -> ResNet8x4: 75.51 %",
    tags=("features", "memory"),
)


NEGATIVES = 0x43524400  # seed of the hash that draws them


class CRD(Tapped):
    """Contrastive representation distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_tap: Where the student is tapped: a module path, a number of timm's, or `pre_logits`.
        teacher_tap: Where the teacher is tapped, likewise.
        crd_weight: Weight of the contrast.
        negatives: K, negatives of a sample.
        width: Width of the embeddings.
        temperature: tau, what similarities are divided by.
        momentum: Share of its past that a memory keeps.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    z: Tensor

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_tap: str = "pre_logits",
        teacher_tap: str = "pre_logits",
        crd_weight: float = 0.8,
        negatives: int = 16384,
        width: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, (student_tap,), (teacher_tap,), weights, optim)
        self.crd_weight, self.negatives, self.width = crd_weight, negatives, width
        self.temperature, self.momentum = temperature, momentum

    def build(self, spec: dict[str, Any]) -> None:
        """Add both embeddings and their memories."""
        super().build(spec)
        self.samples = samples_of(spec)
        [shapes] = self.shapes
        self.embeds = nn.ModuleList(nn.Linear(math.prod(shape), self.width) for shape in shapes)
        bound = (3 / self.width) ** 0.5
        self.memories = nn.ModuleList(
            SampleMemory(spec, torch.empty(self.samples, self.width).uniform_(-bound, bound)) for _ in shapes
        )
        self.register_buffer("z", torch.zeros(2))  # 0: not known yet

    def on_fit_start(self) -> None:
        """Check whose embeddings are remembered."""
        for memory in self.memories:
            memory.belong_to(self.trainer.datamodule)  # type: ignore[attr-defined,operator]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `crd`, and remember what both networks say now."""
        logits, [pair] = self.forward_both(batch)
        embedded = [normalize(embed(f.flatten(1)), dim=1) for embed, f in zip(self.embeds, pair)]  # [B, width] each
        rows = self.drawn(batch["index"], self.global_step)
        contrast = [self.contrast(side, embedded[side], rows) for side in (0, 1)]
        for memory, now in zip(self.memories, embedded):
            past = memory(batch["index"])
            mixed = self.momentum * past + (1 - self.momentum) * now.detach()
            memory.write(batch["index"], normalize(mixed, dim=1))  # type: ignore[operator]
        return {
            "ce": labelled_cross_entropy(logits, batch["label"]),
            "crd": self.crd_weight * torch.stack(contrast).sum(),
        }

    def drawn(self, index: Tensor, step: int) -> Tensor:
        """The sample itself and its negatives, [B, 1 + K]."""
        slots = torch.arange(self.negatives, device=index.device)
        return torch.cat([index[:, None], hash32(NEGATIVES, step, index[:, None], slots) % self.samples], dim=1)

    def contrast(self, side: int, embedded: Tensor, rows: Tensor) -> Tensor:
        """NCE of one side's embedding against the other side's memory."""
        others = self.memories[1 - side](rows)  # [B, 1 + K, width]
        scores = torch.einsum("bd,bkd->bk", embedded.float(), others).div(self.temperature).exp()
        if self.z[side] == 0:
            self.z[side] = global_batch(scores.detach().mean()[None]).mean() * self.samples
        return noise_contrast(scores / self.z[side].clone(), self.samples)
