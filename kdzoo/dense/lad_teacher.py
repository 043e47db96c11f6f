"""The teacher of label-assisted distillation: the student's network, which also sees the labels, in code.

    x1, x2 = two codings of y beside the image x, drawn independently
    loss = CE(f(x1), y) + CE(f(x2), y) + aux_weight * (the same of the auxiliary head)
           + cwd_weight * (CWD(f(x1), stop(f(x2))) + CWD(f(x2), stop(f(x1))))

A coding gives every class of every image a random number (`kdzoo.dense.label_codes`), so that the labels tell the
network where things are and not what they are: that it has to see in the image. CWD is channel-wise distillation on the
scores (`kdzoo.losses.dense`). With `coding: one_hot` or `fixed` the labels say everything and the teacher learns to
copy them: the control.

The teacher is validated and tested with the labels at its input, coded by fixed numbers without noise, as its student
will meet it. That is what an oracle can do and no result of segmentation: it is logged as `oracle_miou`, and again as
`test/miou` only because a proof compares one metric of two arms.
Source: arXiv 2407.13254; the coding, the noise and the weights follow the authors' code, where this phase is a branch
that is switched off. There, learning rate and length of this phase are not given: the field's for VOC are taken.
"""

from typing import Any

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.dense.label_codes import Coding, code_channels, encode
from kdzoo.dense.segmenter import POLY, Segmenter, Start
from kdzoo.losses.dense import channel_wise
from kdzoo.optim import Optim

CARD = Card(
    title="Make a Strong Teacher with Label Assistance: the teacher",
    arxiv="2407.13254",
    year=2024,
    family="dense",
    task="semantic segmentation with the labels at hand",
    student="any segmentation network, with the labels as further input",
    data="images with masks",
    code="skyshoumeng/Label_Assisted_Distillation",
    tags=("segmentation", "teacher", "privileged information"),
)


class LADTeacher(Segmenter):
    """Trains a segmentation network that sees the labels in code.

    Args:
        student: The network that is to be a teacher: `unet_110k`, `deeplabv3_resnet18` ...
        coding: `random` (the paper's), or a control: `fixed` or `one_hot`.
        noise: Standard deviation of the noise on the code of each pixel.
        cwd_weight: Weight of the distillation between the two paths, each way.
        temperature: T of it.
        aux_weight: Weight of the auxiliary head's cross-entropy.
        start: A run or a recipe whose network the network starts from; None where it starts anew.
        weights: What the encoder of a new network starts from: `pretrained` (timm's), or a file of weights; None from
            scratch.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        coding: Coding = "random",
        noise: float = 0.03,
        cwd_weight: float = 5.0,
        temperature: float = 4.0,
        aux_weight: float = 0.4,
        start: Start | None = None,
        weights: str | None = None,
        optim: Optim = POLY,
    ) -> None:
        super().__init__(student, None, start, weights, optim)
        self.coding, self.noise, self.aux_weight = coding, noise, aux_weight
        self.cwd_weight, self.temperature = cwd_weight, temperature

    def label_channels(self, spec: dict[str, Any], taught: bool) -> int:
        """How many channels the coding has."""
        return code_channels(self.coding, spec["classes"])

    def assisted(self, batch: dict[str, Tensor], coding: Coding, noise: float) -> Tensor:
        """Return image and coded labels, [B, C + L, H, W]."""
        assert self.spec is not None
        return torch.cat([batch["image"], encode(batch["mask"], self.spec["classes"], coding, noise)], dim=1)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce_1`, `ce_2`, `cwd`, and `aux_ce_1`, `aux_ce_2` if there is an auxiliary head."""
        first, aux_first = self.student.scores(self.assisted(batch, self.coding, self.noise))  # [B, C, h, w]
        second, aux_second = self.student.scores(self.assisted(batch, self.coding, self.noise))
        one = channel_wise(first, second.detach(), self.temperature)
        other = channel_wise(second, first.detach(), self.temperature)
        return {
            **self.cross_entropies(first, aux_first, batch["mask"], self.aux_weight, "_1"),
            **self.cross_entropies(second, aux_second, batch["mask"], self.aux_weight, "_2"),
            "cwd": self.cwd_weight * (one + other),
        }

    # ------------------------------------------------------------------------------------------------ an oracle's

    def segment(self, batch: dict[str, Tensor]) -> Tensor:
        """Return logits [B, C, H, W], with the labels at the input."""
        return self.student(self.assisted(batch, "one_hot" if self.coding == "one_hot" else "fixed", noise=0.0))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the oracle's mean intersection over union of the validation part, percent."""
        self.val_miou.update(self.segment(batch).argmax(1), batch["mask"])
        self.log("val/oracle_miou", self.val_miou, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the oracle's mean intersection over union of the test part, percent, under both names."""
        super().test_step(batch, batch_idx)
        self.log("test/oracle_miou", self.test_miou)
