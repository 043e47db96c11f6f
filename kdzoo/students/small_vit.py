"""kdzoo's own vision transformers for images of about 28 pixels: patches of 4, so 49 tokens and a class token.

They are timm's `VisionTransformer` with other sizes; a name says width x depth. `deit` ones have a distillation token.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from kdzoo.students.timm_interface import record


class SmallViT(VisionTransformer):
    """A class of kdzoo's own, because timm does not know the names below: its exports carry ONNX."""


class SmallDeiT(VisionTransformerDistilled):
    """The same with a distillation token and two heads, whose mean is the network's answer."""


NAMES = ("vit_48x4_patch4_28", "vit_96x6_patch4_28", "deit_48x4_patch4_28")
default_cfgs = generate_default_cfgs(
    {name: record((1, 28, 28), "patch_embed.proj") | {"classifier": "head", "fixed_input_size": True} for name in NAMES}
)
default_cfgs["deit_48x4_patch4_28"].default.classifier = ("head", "head_dist")


def create(
    name: str, pretrained: bool, options: dict[str, Any], cls: type[VisionTransformer] = SmallViT, **shape: Any
) -> nn.Module:
    """Build a network the way timm builds its own; `options` are the caller's, `shape` the architecture's."""
    features = {"out_indices": 3, "feature_cls": "getter"}  # by forward_intermediates
    fixed = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10}
    return build_model_with_cfg(cls, name, pretrained, feature_cfg=features, **(fixed | shape | options))


@register_model
def vit_48x4_patch4_28(pretrained: bool = False, **options: Any) -> nn.Module:
    """117k parameters (1 channel, 10 classes): a student."""
    return create("vit_48x4_patch4_28", pretrained, options, embed_dim=48, depth=4, num_heads=3)


@register_model
def vit_96x6_patch4_28(pretrained: bool = False, **options: Any) -> nn.Module:
    """678k parameters (1 channel, 10 classes): the teacher of `vit_48x4_patch4_28`."""
    return create("vit_96x6_patch4_28", pretrained, options, embed_dim=96, depth=6, num_heads=6)


@register_model
def deit_48x4_patch4_28(pretrained: bool = False, **options: Any) -> nn.Module:
    """118k parameters (1 channel, 10 classes): a student with a distillation token."""
    return create("deit_48x4_patch4_28", pretrained, options, SmallDeiT, embed_dim=48, depth=4, num_heads=3)
