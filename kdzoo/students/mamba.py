"""Mamba image classifiers: patches as a sequence, which selective state space models read from the first to the last.

Patch embedding, blocks of [norm, linear to twice the inner width, causal depthwise convolution, SiLU, selective scan
with input-dependent step size and matrices, gate, linear], each around a shortcut; norm, mean over the patches, linear
head. In torch alone: no kernel is compiled. Names say width x depth and the side of a patch in pixels.
Source: Gu and Dao, arXiv 2312.00752, section 3 (expansion 2, convolution of 4, rank of the step size width / 16).
"""

import math
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from kdzoo.students.timm_interface import record


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t,  y_t = C_t h_t + D x_t.

    Args:
        x: [B, L, E].
        delta: Step sizes, [B, L, E], positive.
        a: A, a diagonal for each channel, [E, N], negative.
        b: [B, L, N].
        c: [B, L, N].
        d: D, [E].

    Returns:
        y, [B, L, E], in the dtype of the arguments.
    """
    decay = torch.exp(delta[..., None] * a)  # [B, L, E, N]
    drive = (delta * x)[..., None] * b[:, :, None]  # [B, L, E, N]
    state, states = torch.zeros_like(drive[:, 0]), []
    # unbind, not an index for each step: the gradient of each index would be as large as the whole sequence
    for keep, add in zip(decay.unbind(1), drive.unbind(1)):
        state = keep * state + add
        states.append(state)
    return (torch.stack(states, 1) * c[:, :, None]).sum(3) + d * x


class SelectiveSSM(nn.Module):
    """The selective state space model of a block: step size, B and C are linear in the input.

    Args:
        width: E.
        states: N of a channel.
        rank: Of the step size.
    """

    def __init__(self, width: int, states: int, rank: int) -> None:
        super().__init__()
        self.split = (rank, states, states)
        self.read = nn.Linear(width, sum(self.split), bias=False)
        self.step = nn.Linear(rank, width)
        self.a_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(width, 1))
        self.d = nn.Parameter(torch.ones(width))
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        # Step sizes start evenly on a logarithmic scale from 0.001 to 0.1; this inverts the softplus.
        size = torch.exp(torch.empty(width).uniform_(math.log(1e-3), math.log(1e-1)))
        with torch.no_grad():
            self.step.bias.copy_(size + torch.log(-torch.expm1(-size)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, E] to [B, L, E]; the scan is in float32."""
        rank, b, c = self.read(x).split(self.split, dim=2)
        delta = softplus(self.step(rank))
        with torch.autocast(x.device.type, enabled=False):
            a = -torch.exp(self.a_log.float())
            y = selective_scan(x.float(), delta.float(), a, b.float(), c.float(), self.d.float())
        return y.to(x.dtype)

    def scan_flops(self, length: int) -> int:
        """Operations of the scan over a sequence, which counters of matrix products do not see."""
        width, states = self.a_log.shape
        # delta A, exp; delta x B; decay h + drive; C h and its sum: for each state. delta x; D x and its sum.
        return length * width * (7 * states + 3)


class MambaBlock(nn.Module):
    """Norm, selective state space model behind a gate, shortcut.

    Args:
        width: Of a token.
        states: N.
        expand: How many times wider the inside is.
        kernel: Of the causal convolution.
    """

    def __init__(self, width: int, states: int, expand: int = 2, kernel: int = 4) -> None:
        super().__init__()
        inner = expand * width
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.ssm = SelectiveSSM(inner, states, math.ceil(width / 16))
        self.leave = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, width] to [B, L, width]; a token knows those before it."""
        x, gate = self.enter(self.norm(tokens)).chunk(2, dim=2)
        x = self.conv(x.mT)[..., : tokens.shape[1]].mT  # causal: padding on the left alone
        return tokens + self.leave(self.ssm(silu(x)) * silu(gate))


class Mamba(nn.Module):
    """An image classifier of Mamba blocks, behind timm's interface.

    Args:
        width: Of a token.
        depth: Blocks.
        patch: Side of a patch in pixels.
        states: N.
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the images.
        global_pool: `avg`, or empty for none.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        patch: int,
        states: int,
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.in_chans, self.patch = in_chans, patch
        self.patch_embed = nn.Conv2d(in_chans, width, patch, stride=patch)
        self.blocks = nn.ModuleList(MambaBlock(width, states) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.num_features = self.head_hidden_size = width
        self.global_pool = global_pool
        self.feature_info = [{"num_chs": width, "reduction": patch, "module": f"blocks.{i}"} for i in range(depth)]
        self.reset_classifier(num_classes)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that a penalty would push the wrong way."""
        return {name for name, _ in self.named_parameters() if name.endswith(("ssm.a_log", "ssm.d", "ssm.step.bias"))}

    def embed(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to tokens [B, L, width].

        Raises:
            ValueError: The sides are no multiples of the patch's.
        """
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(f"they are no multiples of the patch's {self.patch} pixels")
        return self.patch_embed(x).flatten(2).mT

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to tokens [B, L, width]."""
        tokens = self.embed(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits [B, classes], or to [B, width] with `pre_logits`."""
        x = x.mean(1) if self.global_pool == "avg" else x
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head (0 classes: none) and, if given, the pooling."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps [B, width, h, w] after each block, as timm's networks give them."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        take, deepest = feature_take_indices(len(self.blocks), indices)
        grid = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        tokens, maps = self.embed(x), []
        for index, block in enumerate(self.blocks[: deepest + 1] if stop_early else self.blocks):
            tokens = block(tokens)
            if index in take:
                maps.append((self.norm(tokens) if norm else tokens).mT.unflatten(2, grid))
        return maps if intermediates_only else (self.norm(tokens), maps)


SHAPES: dict[str, dict[str, int]] = {
    "mamba_16x1_patch7": {"width": 16, "depth": 1, "patch": 7, "states": 8},
    "mamba_32x1_patch4": {"width": 32, "depth": 1, "patch": 4, "states": 16},
    "mamba_64x2_patch4": {"width": 64, "depth": 2, "patch": 4, "states": 16},
}
default_cfgs = generate_default_cfgs(
    {name: record((1, 28, 28), "patch_embed") | {"classifier": "head"} for name in SHAPES}
)


def create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Build a network the way timm builds its own; `options` are the caller's."""
    features = {"out_indices": SHAPES[name]["depth"], "feature_cls": "getter"}  # by forward_intermediates
    return build_model_with_cfg(Mamba, name, pretrained, feature_cfg=features, **(SHAPES[name] | options))


@register_model
def mamba_16x1_patch7(pretrained: bool = False, **options: Any) -> nn.Module:
    """A student for images of 28 pixels, 16 patches."""
    return create("mamba_16x1_patch7", pretrained, options)


@register_model
def mamba_32x1_patch4(pretrained: bool = False, **options: Any) -> nn.Module:
    """A student for images of 28 or 32 pixels, 49 or 64 patches."""
    return create("mamba_32x1_patch4", pretrained, options)


@register_model
def mamba_64x2_patch4(pretrained: bool = False, **options: Any) -> nn.Module:
    """A larger student for images of 28 or 32 pixels."""
    return create("mamba_64x2_patch4", pretrained, options)
