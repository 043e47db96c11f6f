"""`Aligner`: brings a student's feature to the shape of a teacher's, both found by a dry run."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from kdzoo.errors import UserError


class Aligner(nn.Module):
    """A learned linear map of channels, after the spatial sizes were made equal.

    Maps [B, C, H, W] use a 1x1 convolution; tokens [B, N, D] and vectors [B, D] a linear layer. A larger map is
    averaged down to the teacher's size, a smaller one is interpolated up.

    Args:
        student_shape: Shape of the student's feature without the batch axis.
        teacher_shape: Shape of the teacher's.

    Raises:
        UserError: The two are not of one kind (a map and tokens, say), or their numbers of tokens differ.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> None:
        super().__init__()
        same_tokens = len(student_shape) != 2 or student_shape[0] == teacher_shape[0]
        if len(student_shape) != len(teacher_shape) or not same_tokens:
            raise UserError(
                f"A student feature of shape {list(student_shape)} cannot be aligned to a teacher feature of shape "
                f"{list(teacher_shape)}: tap both where they are maps, or both where they are tokens of one number."
            )
        self.size = (teacher_shape[1], teacher_shape[2]) if len(teacher_shape) == 3 else None
        if self.size:
            self.map: nn.Module = nn.Conv2d(student_shape[0], teacher_shape[0], kernel_size=1)
        else:
            self.map = nn.Linear(student_shape[-1], teacher_shape[-1])

    def forward(self, feature: Tensor) -> Tensor:
        """Map the student's feature [B, ...] to the teacher's shape."""
        if self.size and tuple(feature.shape[2:]) != self.size:
            height, width = feature.shape[2:]
            feature = adaptive_avg_pool2d(feature, (min(height, self.size[0]), min(width, self.size[1])))
            feature = interpolate(feature, self.size, mode="bilinear", align_corners=False)
        return self.map(feature)
