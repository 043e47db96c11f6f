"""Label-assisted distillation: a teacher that sees the labels in code teaches the same network without them.

    loss = CE(f_s(x), y) + aux_weight * CE(auxiliary head, y) + cwd_weight * CWD(f_s(x), f_t(x with coded y))

The teacher is made by `lad_teacher`, where each class's code was random; here the codes are fixed numbers, with noise
(`kdzoo.dense.label_codes`), which lie in the range that it has learnt to read.

Differs from the authors' code in two things. Their student has the teacher's input channel for labels and gets zeros in
it, so its weights take no part: here it has only the image's channels, which is the same function and exports as an
ordinary network. And their student starts from a finished training, so that a part of what they report is longer
training: `start` does the same (and `supervised_seg` with the same `start` is what to compare it with); without it the
student starts like any other, and wants a larger learning rate.
Source: arXiv 2407.13254; coding, noise, weights and learning rate follow the authors' code.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.dense.label_codes import code_channels, encode
from kdzoo.dense.segmenter import Segmenter, Start
from kdzoo.losses.dense import channel_wise
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Make a Strong Teacher with Label Assistance: A Novel Knowledge Distillation Approach for Semantic "
    "Segmentation",
    arxiv="2407.13254",
    year=2024,
    family="dense",
    task="semantic segmentation",
    teacher="the student's network with the labels as further input (lad_teacher)",
    student="any segmentation network",
    data="images with masks",
    code="skyshoumeng/Label_Assisted_Distillation",
    headline="VOC val mIoU: DeepLabV3-R18 73.21 -> 75.0, PSPNet-R18 73.33 -> 75.4",
    tags=("segmentation", "logits", "privileged information"),
)


class LADSeg(Segmenter):
    """Distils a label-assisted teacher.

    Args:
        student: A segmentation network: `unet_110k`, `deeplabv3_resnet18` ...
        teacher: A recipe of `lad_teacher`, a `Teacher`, or several.
        coding: How the teacher gets the labels: `fixed` (the paper's, for a teacher trained with `random` or `fixed`)
            or `one_hot` (for one trained with `one_hot`).
        noise: Standard deviation of the noise on the code of each pixel.
        cwd_weight: Weight of the teacher's term.
        temperature: T of it, what the scores are divided by.
        aux_weight: Weight of the auxiliary head's cross-entropy.
        start: A run or a recipe whose network the student starts from; None where it starts anew.
        weights: What the encoder of a new student starts from: `pretrained` (timm's), or a file of weights; None from
            scratch.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        coding: Literal["fixed", "one_hot"] = "fixed",
        noise: float = 0.02,
        cwd_weight: float = 3.0,
        temperature: float = 4.0,
        aux_weight: float = 0.02,
        start: Start | None = None,
        weights: str | None = None,
        optim: Optim = Optim(lr=1e-3, weight_decay=1e-4, schedule="poly"),
    ) -> None:
        super().__init__(student, teacher, start, weights, optim)
        self.coding: Literal["fixed", "one_hot"] = coding
        self.noise, self.aux_weight = noise, aux_weight
        self.cwd_weight, self.temperature = cwd_weight, temperature

    def label_channels(self, spec: dict[str, Any], taught: bool) -> int:
        """None of the student, those of the coding of the teacher."""
        return 0 if taught else code_channels(self.coding, spec["classes"])

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, `cwd`, and `aux_ce` if there is an auxiliary head."""
        assert self.spec is not None
        image, mask = batch["image"], batch["mask"]
        code = encode(mask, self.spec["classes"], self.coding, self.noise)  # [B, L, H, W]
        scores, auxiliary = self.student.scores(image)  # [B, C, h, w]
        taught = self.teacher_scores({"image": torch.cat([image, code], dim=1)}, scores)
        return {
            **self.cross_entropies(scores, auxiliary, mask, self.aux_weight),
            "cwd": self.cwd_weight * channel_wise(scores, taught, self.temperature),
        }
