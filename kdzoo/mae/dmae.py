"""Distilling masked autoencoders: the student reconstructs pixels and imitates a pre-trained teacher's middle.

    loss = MSE(decoder(student(x_visible)), x_masked) + align_weight * |n(h(f_s)) - n(f_t)|_1

One mask serves both. f_s and f_t are the outputs of a block at about three quarters of either's depth, over the visible
patches and the class token; h is a linear map of widths, n divides by the L2 norm along channels, and |.|_1 is the mean
over all elements. The teacher runs up to its block and not further, and on the visible patches alone: at 75 % masking
that is less than a quarter of its forward pass. It needs no decoder.
The mean of the normalised differences falls as 1 / sqrt(width), so the paper's weight of 1 belongs to a teacher of
1024 channels; sqrt(width / 1024) is the same pull for a narrower one.
Source: Bai et al., arXiv 2208.12256, section 3 and its appendix (100 epochs, of which 20 warm up; AdamW with a base
learning rate of 1.5e-4 times batch / 256, here for a batch of 4096). The authors' code runs the whole teacher and its
decoder, and throws the rest away.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import l1_loss, normalize

from kdzoo.card import Card
from kdzoo.console import count
from kdzoo.errors import UserError
from kdzoo.mae.encoder import check_vit, class_and_patches, visible_tokens
from kdzoo.mae.pretraining import Pretraining
from kdzoo.optim import Optim
from kdzoo.students.network import ImageNetwork
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import Teacher

CARD = Card(
    title="Masked Autoencoders Enable Efficient Knowledge Distillers",
    arxiv="2208.12256",
    year=2023,
    family="mae",
    task="self-supervised pre-training",
    teacher="any pre-trained vision transformer with the student's patches",
    student="any vision transformer",
    data="images",
    code="https://github.com/UCSC-VLAA/DMAE",
    headline="ImageNet, ViT-L to ViT-B: 84.0 % after fine-tuning",
    tags=("features", "self-supervised", "label-free"),
)


def feature_alignment(student: Tensor, teacher: Tensor) -> Tensor:
    """L1 distance of directions: the mean over tokens and channels of |s / |s|_2 - t / |t|_2|.

    Args:
        student: tokens [B, K, D], after the map to the teacher's width.
        teacher: tokens [B, K, D].

    Returns:
        A scalar in [0, 2].
    """
    return l1_loss(normalize(student.float(), dim=-1), normalize(teacher.float(), dim=-1))


class FirstBlocks(nn.Module):
    """A vision transformer up to a block, on the visible patches alone."""

    def __init__(self, network: ImageNetwork, blocks: int) -> None:
        super().__init__()
        self.network, self.blocks = network, blocks

    def forward(self, image: Tensor, visible: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] and numbers of visible patches [B, V] to [B, P + V, D]."""
        vit: Any = self.network.network
        return vit.blocks[: self.blocks](visible_tokens(self.network, image, visible))


def block_number(tap: int | None, depth: int, whose: str) -> int:
    """The number of the tapped block, from 0: three quarters up (8 of 12, 17 of 24) unless told.

    Raises:
        UserError: There is no such block.
    """
    number = max(0, 3 * depth // 4 - 1) if tap is None else tap
    if not 0 <= number < depth:
        raise UserError(f"{whose}_tap={number} is no block of the {whose}: its blocks are 0 to {depth - 1}.")
    return number


class DMAE(Pretraining):
    """Masked-autoencoder distillation.

    Args:
        student: A vision transformer of timm's, `vit_...`.
        teacher: A recipe's name, or a `Teacher`: a vision transformer with the student's patches.
        mask_ratio: Share of the patches that is hidden from both, in (0, 1).
        student_tap: The student's block that is aligned, from 0; None: three quarters up (8 of 12).
        teacher_tap: The teacher's block that it is aligned to, from 0; None: three quarters up (17 of 24).
        align_weight: Weight of the alignment.
        norm_pix_loss: Reconstruct pixels that are standardised per patch.
        decoder_width: Width of the decoder's blocks.
        decoder_depth: Number of the decoder's blocks.
        decoder_heads: Attention heads of the decoder's blocks.
        weights: Where the encoder starts: a file, `pretrained`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    teacher: FrozenTeacher

    def __init__(
        self,
        student: str,
        teacher: str | Teacher,
        mask_ratio: float = 0.75,
        student_tap: int | None = None,
        teacher_tap: int | None = None,
        align_weight: float = 1.0,
        norm_pix_loss: bool = False,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        weights: str | None = None,
        optim: Optim = Optim(
            name="adamw", lr=2.4e-3, weight_decay=0.05, betas=(0.9, 0.95), schedule="cosine", warmup=0.2
        ),
    ) -> None:
        super().__init__(
            student, mask_ratio, norm_pix_loss, decoder_width, decoder_depth, decoder_heads, weights, optim
        )
        self.teachers = sources.teachers(teacher)
        if self.teachers[0].store:
            raise UserError("The teacher sees other patches in every view, so nothing is stored: leave store out.")
        self.student_tap, self.teacher_tap, self.align_weight = student_tap, teacher_tap, align_weight

    def build(self, spec: dict[str, Any]) -> None:
        """Add the teacher up to its block, and the map of widths."""
        super().build(spec)
        loaded, self._teacher_summary = sources.load(self.teachers, spec)
        network = loaded.networks[0]
        check_vit(network, spec)
        if (grid := network.network.patch_embed.grid_size) != self.grid:
            raise UserError(
                f"The student '{self.architecture}' has {self.grid[0]} x {self.grid[1]} patches and the teacher "
                f"'{network.architecture}' {grid[0]} x {grid[1]}: one mask must serve both, take equal patch sizes."
            )
        self.student_block = block_number(self.student_tap, len(self.vit.blocks), "student")
        self.teacher_block = block_number(self.teacher_tap, len(network.network.blocks), "teacher")
        first_blocks = FirstBlocks(network, self.teacher_block + 1)
        self.teacher = FrozenTeacher([first_blocks], self.teachers[0].dtype, inputs=("image", "visible"))
        self.head = nn.Linear(self.vit.embed_dim, network.network.embed_dim)
        self.class_token: bool = self.vit.has_class_token and network.network.has_class_token

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `pixel` and `align`."""
        image = batch["image"]
        visible, masked = self.mask(batch)  # [B, V], [B, M]
        tokens = visible_tokens(self.student, image, visible)  # [B, P + V, D_s]
        middle = self.vit.blocks[: self.student_block + 1](tokens)
        latent = self.vit.norm(self.vit.blocks[self.student_block + 1 :](middle))
        teacher_middle = self.teacher({"image": image, "visible": visible})  # [B, P + V, D_t]
        return {
            "pixel": self.pixel_loss(image, latent, visible, masked),
            "align": self.align_weight * self.align(middle, teacher_middle),
        }

    def align(self, middle: Tensor, teacher_middle: Tensor) -> Tensor:
        """The alignment over the class token, if both have one, and the visible patches."""
        teacher_vit = self.teacher.networks[0].network.network
        ours = class_and_patches(middle, self.vit, self.class_token)  # [B, 1 + V, D_s]
        theirs = class_and_patches(teacher_middle, teacher_vit, self.class_token)  # [B, 1 + V, D_t]
        return feature_alignment(self.head(ours), theirs)

    def prepare(self) -> None:
        """Train the teacher if it is a recipe and not in the cache."""
        sources.prepare(self.teachers)

    def summary(self) -> str:
        """Say the student's name and size, and how much of the teacher runs."""
        blocks = len(self.teacher.networks[0].network.network.blocks)
        teacher = f"{count(self._teacher_summary['parameters'])} parameters, runs {self.teacher_block + 1} of {blocks}"
        return f"{super().summary()}; teacher of {teacher} blocks"

    def teacher_summary(self) -> dict[str, Any] | None:
        """Say who teaches."""
        return self._teacher_summary
