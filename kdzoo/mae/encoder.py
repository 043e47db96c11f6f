"""timm's vision transformers as encoders of the visible patches alone."""

from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from kdzoo.errors import UserError
from kdzoo.mae.masking import take
from kdzoo.students.network import ImageNetwork


def check_vit(network: ImageNetwork, spec: dict[str, Any]) -> None:
    """Check that a network is a vision transformer whose patches cover the images of `spec`.

    Raises:
        UserError: It is not.
    """
    vit, name = network.network, network.architecture
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"'{name}' is no vision transformer of timm (vit_...), and only those leave patches out.")
    patch, size = vit.patch_embed.patch_size, spec["image_size"]
    if any(pixels % side for pixels, side in zip(size, patch)):
        raise UserError(
            f"The patches of '{name}' ({patch[0]} x {patch[1]}) do not divide images of {size[0]} x {size[1]}: take "
            "another image_size or patch size."
        )


def normalise(network: ImageNetwork, image: Tensor) -> Tensor:
    """Images [B, C, H, W] in [0, 1] as the network sees them."""
    return (image - network.mean) / network.std


def visible_tokens(network: ImageNetwork, image: Tensor, visible: Tensor) -> Tensor:
    """What a transformer's first block reads, of the visible patches alone.

    Args:
        network: A vision transformer.
        image: [B, C, H, W] in [0, 1].
        visible: Numbers of the visible patches, int64 [B, V].

    Returns:
        [B, P + V, D]: the prefix (the class token, registers), then the visible patches with their positions.
    """
    vit: Any = network.network
    tokens = vit._pos_embed(vit.patch_embed(normalise(network, image)))  # [B, P + N, D]
    prefix, patches = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
    return vit.norm_pre(torch.cat([prefix, take(patches, visible)], dim=1))


def class_and_patches(tokens: Tensor, vit: VisionTransformer, class_token: bool) -> Tensor:
    """Of tokens [B, P + V, D] the class token, if asked for, and the patches: registers are nobody's counterpart."""
    patches = tokens[:, vit.num_prefix_tokens :]
    return torch.cat([tokens[:, :1], patches], dim=1) if class_token else patches


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Sine-cosine positions of a grid's places, row by row: [rows * columns, width] float32.

    A quarter of the channels each is sin(x w), cos(x w), sin(y w), cos(y w), with w falling from 1 to 1 / 10000.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / max(1, quarter))
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (x, y)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return nn.functional.pad(waves, (0, width - 4 * quarter)).float()


def initialise(vit: VisionTransformer) -> None:
    """Start a transformer as masked autoencoders start: Xavier's linear maps, sine-cosine positions."""
    xavier(vit)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(vit.embed_dim, -1))
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=0.02)
    if vit.pos_embed is not None:
        places = sincos_positions(vit.patch_embed.grid_size, vit.embed_dim)
        with torch.no_grad():
            vit.pos_embed.zero_()  # the prefix has no place
            vit.pos_embed[0, -len(places) :] = places


def xavier(module: nn.Module) -> None:
    """Draw every linear layer by Xavier's rule, uniformly, with biases of zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
