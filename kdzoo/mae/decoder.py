"""The light decoder of a masked autoencoder: from the visible patches' latents to the masked patches' pixels."""

import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from kdzoo.errors import UserError
from kdzoo.mae.encoder import sincos_positions, xavier
from kdzoo.mae.masking import take


class Decoder(nn.Module):
    """Transformer blocks over all places of the grid, a learned mask token where nothing was visible.

    Args:
        latent_width: D, width of the encoder.
        prefix: P, tokens of the encoder that are not patches.
        grid: rows and columns of patches, N = rows * columns.
        patch_values: pixels of a patch times channels.
        width: width of the blocks.
        depth: number of blocks.
        heads: attention heads of a block; divides `width`.

    Raises:
        UserError: `heads` does not divide `width`.
    """

    positions: Tensor

    def __init__(
        self,
        latent_width: int,
        prefix: int,
        grid: tuple[int, int],
        patch_values: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"decoder_heads={heads} does not divide decoder_width={width}: give another number.")
        self.prefix = prefix
        self.embed = nn.Linear(latent_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(grid, width)[None], persistent=False)  # [1, N, width]
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = LayerNorm(width)
        self.to_pixels = nn.Linear(width, patch_values)
        xavier(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predict the pixels of the masked patches.

        Args:
            latent: [B, P + V, D], what the encoder made of the visible patches.
            visible: numbers of the visible patches, int64 [B, V].
            masked: numbers of the masked ones, int64 [B, M]; V + M = N.

        Returns:
            [B, M, patch_values]. Nothing is predicted where the pixels were visible: no loss asks for it.
        """
        positions = self.positions.expand(len(latent), -1, -1)
        tokens = self.embed(latent)  # [B, P + V, width]
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :] + take(positions, visible)
        hidden = self.mask_token + take(positions, masked)  # [B, M, width]
        # Attention knows no order but the positions': the masked patches may stand last.
        tokens = self.blocks(torch.cat([prefix, patches, hidden.to(patches.dtype)], dim=1))
        return self.to_pixels(self.norm(tokens[:, -masked.shape[1] :]))
