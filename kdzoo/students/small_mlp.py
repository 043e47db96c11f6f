"""Multilayer perceptrons on the pixels, as small as students get. A name says the hidden width."""

import math
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from kdzoo.students.timm_interface import record


class SmallMLP(nn.Module):
    """Pixels, one hidden layer with ReLU, linear head, behind what timm asks of a classifier.

    Args:
        hidden: Width of the hidden layer.
        img_size: Height and width of the images, or one number for both.
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the images.
    """

    def __init__(
        self, hidden: int, img_size: int | tuple[int, int] = 28, num_classes: int = 10, in_chans: int = 1
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.fc1 = nn.Linear(math.prod((in_chans, height, width)), hidden)
        self.act = nn.ReLU()
        self.num_features = self.head_hidden_size = hidden
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to the hidden layer, [B, hidden]."""
        return self.act(self.fc1(x.flatten(1)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, hidden] to logits [B, classes]; with `pre_logits` as it is."""
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head (0 classes: none)."""
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


default_cfgs = generate_default_cfgs({"mlp_32": record((1, 28, 28), "fc1") | {"fixed_input_size": True}})


@register_model
def mlp_32(pretrained: bool = False, **options: Any) -> nn.Module:
    """25k parameters (28 x 28 pixels, 10 classes): a hidden layer of 32."""
    return build_model_with_cfg(SmallMLP, "mlp_32", pretrained, **({"hidden": 32} | options))
