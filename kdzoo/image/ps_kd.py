"""Self-distillation with progressive refinement of targets: the model's own last prediction softens a sample's label.

    loss = CE(z, (1 - a_t) y + a_t P[i]),    a_t = a_T (t + 1) / T,    then P[i] <- softmax(z)

P is a memory of one distribution per training sample: the one of the last time that the sample was seen, in training
mode and with that epoch's augmentation. In the first epoch it is the label. Samples without a label are left out.
The memory is in the checkpoint and the same on every rank.
Source: Kim et al., arXiv 2006.12000, eq. 3-5 (a_T = 0.8).
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.image.memory import SampleMemory
from kdzoo.losses.logits import soft_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.fill import epochs

CARD = Card(
    title="Self-Knowledge Distillation with Progressive Refinement of Targets",
    arxiv="2006.12000",
    year=2021,
    family="image",
    task="image classification",
    teacher="itself, an epoch ago",
    student="any classifier",
    data="labelled images",
    code="https://github.com/lgcnsai/PS-KD-Pytorch",
    headline="CIFAR-100 PreAct ResNet-18: error 24.18 -> 20.82 %, ECE 11.84 -> 1.77 %",
    tags=("self-distillation", "memory"),
)


class PSKD(Classifier):
    """Progressive self-distillation.

    Args:
        student: Any timm architecture.
        alpha: a_T, the memory's share of the target in the last epoch, in [0, 1].
        memory_dtype: Precision of the memory: samples x classes.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule: the paper's decays at 150 and 225 of 300 epochs.
    """

    def __init__(
        self,
        student: str,
        alpha: float = 0.8,
        memory_dtype: Literal["float32", "float16"] = "float32",
        weights: str | None = None,
        optim: Optim = Optim(lr=0.1, milestones=(0.5, 0.75)),
    ) -> None:
        super().__init__(student, None, weights, optim)
        self.alpha, self.memory_dtype = alpha, memory_dtype

    def build(self, spec: dict[str, Any]) -> None:
        """Add the memory: rows of zeros, which stand for the label."""
        super().build(spec)
        self.memory = SampleMemory(spec, torch.zeros(1, spec["classes"], dtype=getattr(torch, self.memory_dtype)))

    def on_fit_start(self) -> None:
        """Check whose predictions are remembered."""
        self.memory.belong_to(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Learn how many epochs there are."""
        self.epochs = epochs(self.trainer)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ps_kd`, and remember what the model says now."""
        logits, label, index = self.student(batch["image"]), batch["label"], batch["index"]
        share = self.alpha * min(1.0, (self.current_epoch + 1) / self.epochs)
        target = self.target(label, self.memory(index), share)
        self.memory.write(index, logits.detach().float().softmax(1))
        return {"ps_kd": soft_cross_entropy(logits, target)}

    @staticmethod
    def target(label: Tensor, past: Tensor, share: float) -> Tensor:
        """Mix labels [B] and past predictions [B, C], where there is one: [B, C], zeros for a sample without label."""
        hard = one_hot(label.clamp(min=0), past.shape[1]).to(past)
        past = torch.where(past.sum(1, keepdim=True) > 0, past, hard)
        return ((1 - share) * hard + share * past) * (label >= 0)[:, None]
