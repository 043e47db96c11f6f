"""The one wrapper around every timm network: it normalises its own input and gives features at named taps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.errors import UserError, near


class _DeepestTap(Exception):
    """Raised by a hook when every tap has been seen."""


class ImageNetwork(nn.Module):
    """A timm network that takes images in [0, 1] and normalises them itself.

    A tap names a place in the network:

    - a module path ("layer3", "blocks.2"): the output of the module's first call in a pass;
    - an integer as text ("1", "-1"): the index of timm's `forward_intermediates`, as [B, C, H, W];
    - "features": what timm's `forward_features` returns, before pooling;
    - "pre_logits": the pooled features that the classifier reads, [B, D].

    Args:
        architecture: timm's name of the network.
        network: the timm network, images [B, C, H, W] to logits [B, classes].
        mean: of the C channels, in the [0, 1] scale.
        std: of the C channels, in the [0, 1] scale, positive.

    Attributes:
        replaced: how many classes the weights had that it was built from, if its head is a new one in the place of
            theirs (0: they had none); None if its head is theirs, or nothing was loaded.
    """

    mean: Tensor
    std: Tensor
    replaced: int | None = None

    def __init__(self, architecture: str, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to logits [B, classes]."""
        return self.network(self._normalise(image))

    def forward_head(self, feature: Tensor, pre_logits: bool = False) -> Tensor:
        """What the tap "features" gives to logits [B, classes], or to [B, D] with `pre_logits`."""
        return self.network.forward_head(feature, pre_logits=pre_logits)  # type: ignore[operator]

    def forward_with(self, image: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, classes] and the feature of every tap, in one pass, with gradient.

        Raises:
            UserError: a tap is not in this network.
        """
        paths, indices = self._split(taps)
        with self._hooks(paths, stop=False) as seen:
            if len(paths) == len(taps):
                logits = self(image)
            else:
                self._body(image, indices, seen, stop=False)
                logits = self.forward_head(seen["features"])
                if "pre_logits" in taps:
                    seen["pre_logits"] = self.forward_head(seen["features"], pre_logits=True)
        return logits, self._in_order(taps, seen)

    def features(self, image: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """The feature of every tap; the pass stops at the deepest one (module paths beside other taps: at the head).

        Raises:
            UserError: a tap is not in this network.
        """
        paths, indices = self._split(taps)
        with self._hooks(paths, stop=len(paths) == len(taps)) as seen, suppress(_DeepestTap):
            if len(paths) == len(taps):
                self(image)
            else:
                self._body(image, indices, seen, stop=indices.keys() == set(taps))
                if "pre_logits" in taps:
                    seen["pre_logits"] = self.forward_head(seen["features"], pre_logits=True)
                if not all(path in seen for path in paths):
                    self.forward_head(seen["features"])
        return self._in_order(taps, seen)

    def tap_shapes(self, spec: dict[str, Any], taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shape of every tap without its batch axis, e.g. (C, H, W), for images of the spec's size.

        A dry run in eval mode: random state, batch statistics and every module's mode stay as they are.
        """
        modes = {module: module.training for module in self.modules()}
        image = torch.zeros(2, spec["channels"], *spec["image_size"], device=self.mean.device)
        devices = [image.device] if image.device.type == "cuda" else []
        try:
            self.eval()
            with torch.no_grad(), torch.random.fork_rng(devices):
                return {tap: tuple(feature.shape[1:]) for tap, feature in self.features(image, taps).items()}
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _normalise(self, image: Tensor) -> Tensor:
        return ((image - self.mean) / self.std).to(next(self.network.parameters()).dtype)

    def _split(self, taps: Sequence[str]) -> tuple[list[str], dict[str, int]]:
        """Module paths, and integer taps with the index that they mean (counted from the front)."""
        modules = dict(self.network.named_modules())
        indices = {tap: int(tap) for tap in taps if tap.removeprefix("-").isdecimal() and tap not in modules}
        paths = [tap for tap in taps if tap not in indices and tap not in ("features", "pre_logits")]
        for path in paths:
            if not path or path not in modules:
                hint = near(path, modules) or f" Its parts: {', '.join(dict(self.network.named_children()))}."
                raise UserError(f"'{self.architecture}' has no module '{path}' to tap.{hint}")
        if indices:
            if not hasattr(self.network, "forward_intermediates"):
                raise UserError(f"'{self.architecture}' has no numbered taps, which are maps: name a module path.")
            count = len(self.network.feature_info)  # type: ignore[arg-type]
            for tap, index in indices.items():
                if not -count <= index < count:
                    raise UserError(f"'{self.architecture}' has no tap {tap}: its taps are 0 to {count - 1}.")
            indices = {tap: index % count for tap, index in indices.items()}
        return paths, indices

    def _body(self, image: Tensor, indices: dict[str, int], seen: dict[str, Tensor], stop: bool) -> None:
        """Put the integer taps into `seen`, and "features"; with `stop` integer taps alone, no deeper than needed."""
        x = self._normalise(image)
        if not indices:
            seen["features"] = self.network.forward_features(x)  # type: ignore[operator]
            return
        order = sorted(set(indices.values()))  # timm answers in the order of depth, whatever the order asked
        found = self.network.forward_intermediates(  # type: ignore[operator]
            x, indices=order, stop_early=stop, intermediates_only=stop, output_fmt="NCHW"
        )
        if not stop:
            seen["features"], found = found
        seen.update({tap: found[order.index(index)] for tap, index in indices.items()})

    @contextmanager
    def _hooks(self, paths: Sequence[str], stop: bool) -> Iterator[dict[str, Tensor]]:
        """Collect the outputs of the modules at `paths`; with `stop`, end the pass once all have been seen."""
        seen: dict[str, Tensor] = {}

        def hook(path: str, output: object) -> Tensor | None:
            if path in seen:
                return None
            if not isinstance(output, Tensor):
                raise UserError(f"tap '{path}' of '{self.architecture}' gives no tensor: tap a module inside it.")
            seen[path] = output
            if stop and len(seen) == len(set(paths)):
                raise _DeepestTap
            return output.clone()  # the network goes on with a copy: a ReLU in place would change the feature

        handles = [
            self.network.get_submodule(path).register_forward_hook(lambda _, __, output, path=path: hook(path, output))
            for path in dict.fromkeys(paths)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _in_order(self, taps: Sequence[str], seen: dict[str, Tensor]) -> dict[str, Tensor]:
        for tap in taps:
            if tap not in seen:
                raise UserError(f"a forward pass of '{self.architecture}' never calls '{tap}': tap another module.")
        return {tap: seen[tap] for tap in taps}
