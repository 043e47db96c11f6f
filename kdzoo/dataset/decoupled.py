"""What decoupled methods share: a teacher that has seen the real images once, and labels the synthetic ones."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from kdzoo.dataset.distiller import Distiller
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.errors import UserError
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import Teachers

PASS = 500  # images at a time through the teacher


class Decoupled(Distiller):
    """Makes images by what a trained teacher says of them, one set at a time, without training a network on them.

    Networks that train on the set learn the teacher's soft labels of every augmented image, anew for each:

        T^2 KL(softmax(teacher / T) | softmax(network / T))

    The export holds the teacher's probabilities of the images as they are.

    Args:
        ipc: Synthetic images per class.
        teacher: A classifier of the real images: a recipe's name, a `Teacher`, or several.
        temperature: T.
        lr_img: Learning rate of the pixels.
        network, width, depth: Architecture that judges.
        evaluation: How the set is judged.
    """

    teacher: FrozenTeacher

    def __init__(
        self,
        ipc: int,
        teacher: Teachers,
        temperature: float,
        lr_img: float,
        network: str,
        width: int,
        depth: int | None,
        evaluation: Evaluation,
    ) -> None:
        super().__init__(ipc, "noise", lr_img, 0.0, network, width, depth, evaluation)
        if temperature <= 0:
            raise UserError(f"{type(self).__name__}: temperature={temperature} must be positive.")
        self.teachers, self.temperature = sources.teachers(teacher), temperature

    def prepare(self) -> None:
        """Train the teachers that are recipes and not in the cache."""
        sources.prepare(self.teachers)

    def build(self, spec: dict[str, Any]) -> None:
        """Make the set, and load the teacher."""
        super().build(spec)
        self.teacher, self._teacher_summary = sources.load(self.teachers, spec)

    def teacher_summary(self) -> dict[str, Any] | None:
        """Say who teaches."""
        return self._teacher_summary

    def teach(self, x: Tensor) -> Tensor:
        """The teacher's logits [n, classes] of images [n, C, H, W] as the family's networks see them."""
        return torch.cat([self.teacher({"image": self.preprocess.inverse(part)}) for part in x.split(PASS)])

    def criterion(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Learn what the teacher says of these very images."""
        wanted = (self.teach(images) / self.temperature).softmax(1)
        found = (logits / self.temperature).log_softmax(1)
        return self.temperature**2 * kl_div(found, wanted, reduction="batchmean")

    def final_labels(self) -> Tensor:
        """The teacher's probabilities of the images as they are, [classes * ipc, classes]."""
        return self.teach(self.final_images()).softmax(1)
