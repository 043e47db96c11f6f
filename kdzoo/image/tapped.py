"""`Tapped`: what methods share that compare features of the student with features of the teacher."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from kdzoo.errors import UserError
from kdzoo.image.classifier import Classifier
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

Pairs = list[tuple[Tensor, Tensor]]


class Tapped(Classifier):
    """Taps both networks; a subclass compares the pairs that `forward_both` gives.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_taps: Module paths, or indices of timm's `forward_intermediates`, or `pre_logits`.
        teacher_taps: The teacher's, one for each of the student's.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.

    Attributes:
        maps: Whether the method compares maps [B, C, H, W].
        shapes: (student's, teacher's) shape of each pair without the batch axis, found by a dry run.
    """

    maps: ClassVar[bool] = False

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_taps: Sequence[str],
        teacher_taps: Sequence[str],
        weights: str | None,
        optim: Optim,
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        if len(student_taps) != len(teacher_taps) or not student_taps:
            raise UserError(
                f"student_taps {list(student_taps)} and teacher_taps {list(teacher_taps)} are compared one by one: "
                "give as many of each."
            )
        self.student_taps, self.teacher_taps = list(student_taps), list(teacher_taps)

    def build(self, spec: dict[str, Any]) -> None:
        """Find the shapes."""
        super().build(spec)
        student, teacher = (
            self.student.tap_shapes(spec, self.student_taps),
            self.teacher.tap_shapes(spec, self.teacher_taps),
        )
        self.shapes = [(student[s], teacher[t]) for s, t in zip(self.student_taps, self.teacher_taps)]
        for who, taps, shapes in ("student", self.student_taps, student), ("teacher", self.teacher_taps, teacher):
            for tap in taps if self.maps else ():
                if len(shapes[tap]) != 3:
                    raise UserError(
                        f"{type(self).__name__} compares maps of features, and the {who}'s '{tap}' is of shape "
                        f"{list(shapes[tap])}: tap a place where it has height and width."
                    )

    def forward_both(self, batch: dict[str, Tensor]) -> tuple[Tensor, Pairs]:
        """The student's logits [B, C], and (student's, teacher's) feature for each pair of taps."""
        logits, student = self.student.forward_with(batch["image"], list(dict.fromkeys(self.student_taps)))
        teacher = self.teacher.features(batch, list(dict.fromkeys(self.teacher_taps)))
        return logits, [(student[s], teacher[t].float()) for s, t in zip(self.student_taps, self.teacher_taps)]
