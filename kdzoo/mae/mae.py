"""Masked autoencoders: reconstruct an image from a quarter of its patches.

    loss = MSE(decoder(encoder(x_visible)), x_masked)        (mean over the pixels of the masked patches)

The encoder sees the visible patches alone; a light decoder sees their latents and a learned token in the masked
places. Positions are sine-cosine ones and not learned. Masks are a function of (seed, sample, view), so that a run can
stop and go on.
Source: He et al., arXiv 2111.06377, section 3 and appendix A.1 (800 epochs, of which 40 warm up; AdamW with a base
learning rate of 1.5e-4 times batch / 256, here for a batch of 4096). Pixels are not standardised per patch, as in the
paper's ablations; `norm_pix_loss` does it.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.mae.pretraining import Pretraining
from kdzoo.optim import Optim

CARD = Card(
    title="Masked Autoencoders Are Scalable Vision Learners",
    arxiv="2111.06377",
    year=2021,
    family="mae",
    task="self-supervised pre-training",
    student="any vision transformer",
    data="images",
    code="https://github.com/facebookresearch/mae",
    tags=("baseline", "teacher", "self-supervised", "label-free"),
)


class MAE(Pretraining):
    """Masked-autoencoder pre-training.

    Args:
        student: A vision transformer of timm's, `vit_...`.
        mask_ratio: Share of the patches that is hidden, in (0, 1).
        norm_pix_loss: Reconstruct pixels that are standardised per patch.
        decoder_width: Width of the decoder's blocks.
        decoder_depth: Number of the decoder's blocks.
        decoder_heads: Attention heads of the decoder's blocks.
        weights: Where the encoder starts: a file, `pretrained`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        weights: str | None = None,
        optim: Optim = Optim(
            name="adamw", lr=2.4e-3, weight_decay=0.05, betas=(0.9, 0.95), schedule="cosine", warmup=0.05
        ),
    ) -> None:
        super().__init__(
            student, mask_ratio, norm_pix_loss, decoder_width, decoder_depth, decoder_heads, weights, optim
        )

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `pixel`."""
        visible, masked = self.mask(batch)  # [B, V], [B, M]
        latent = self.encode(batch["image"], visible)  # [B, P + V, D]
        return {"pixel": self.pixel_loss(batch["image"], latent, visible, masked)}
