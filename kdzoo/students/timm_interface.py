"""What timm asks of a network, written once for networks that are a stem, some stages and a linear head."""

from collections.abc import Sequence
from typing import Any

from timm.layers import SelectAdaptivePool2d, create_classifier
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class StagedNetwork(nn.Module):
    """Stem, stages, global pooling, linear head `fc`, behind timm's interface.

    A subclass registers its stem's modules, calls `add_stages_and_head`, and overrides `stem` and perhaps `finish`.
    """

    global_pool: SelectAdaptivePool2d
    fc: nn.Module

    def add_stages_and_head(
        self,
        stages: dict[str, nn.Module],
        stem: str,
        widths: Sequence[int],
        num_classes: int,
        global_pool: str,
        stem_stride: int = 1,
    ) -> None:
        """Register the stages and the head.

        Args:
            stages: name -> module, in order; every stage but the first halves height and width.
            stem: name of the stem's last module.
            widths: channels after the stem and after each stage.
            num_classes: 0 for no head.
            global_pool: a pool type of timm ("avg", "max", "" for none).
            stem_stride: how many times smaller the stem makes height and width.
        """
        self.stages = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.feature_info = [
            {"num_chs": width, "reduction": stem_stride * 2 ** max(0, index - 1), "module": name}
            for index, (name, width) in enumerate(zip((stem, *stages), widths))
        ]
        self.num_features = self.head_hidden_size = widths[-1]
        self.reset_classifier(num_classes, global_pool)

    def stem(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to the first feature map, [B, widths[0], H, W]."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """What comes between the last stage and the pooling."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, num_features, h, w]."""
        x = self.stem(x)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.finish(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, num_features, h, w] to logits [B, classes], or to [B, num_features] with `pre_logits`."""
        x = self.global_pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to logits [B, classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head (0 classes: none) and, if given, the pooling."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps after the stem (index 0) and after each stage.

        Args:
            x: [B, in_chans, H, W].
            indices: the ones to take; a number n for the last n, None for all.
            norm: put the last one through `finish`.
            stop_early: skip the stages after the last index.
            output_fmt: only "NCHW".
            intermediates_only: leave out the final feature.

        Returns:
            The maps in order of depth, after the final feature (of the last stage run) unless `intermediates_only`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        take, deepest = feature_take_indices(len(self.stages) + 1, indices)
        x = self.stem(x)
        intermediates = [x] if 0 in take else []
        last = x
        for index, stage in enumerate(self.stages[:deepest] if stop_early else self.stages, start=1):
            x = getattr(self, stage)(x)
            last = self.finish(x) if index == len(self.stages) else x
            if index in take:
                intermediates.append(last if norm else x)
        return intermediates if intermediates_only else (last, intermediates)


def initialise(network: nn.Module) -> None:
    """Draw convolutions by He's rule for their outputs, as the code bases of the field do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def record(input_size: tuple[int, int, int], first_conv: str) -> dict[str, Any]:
    """Timm's `default_cfgs` entry of a network without published weights, so without a normalisation of its own."""
    return {
        "input_size": input_size,
        "num_classes": 10,
        "mean": None,
        "std": None,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": "fc",
    }


def create(cls: type[StagedNetwork], name: str, pretrained: bool, options: dict[str, Any], **shape: Any) -> nn.Module:
    """Build `cls` the way timm builds its own; `options` are the caller's, `shape` the architecture's."""
    indices = tuple(range(len(shape["depths"]) + 1))
    features = {"out_indices": indices, "feature_cls": "getter"}  # by forward_intermediates
    return build_model_with_cfg(cls, name, pretrained, feature_cfg=features, **(shape | options))
