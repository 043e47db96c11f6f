"""`FrozenTeacher`: networks that only teach."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Dtype = Literal["float32", "bfloat16", "float16"]


class FrozenTeacher(nn.Module):
    """One or several networks in evaluation mode, without gradient, outside checkpoints and optimizers.

    The networks are not submodules: `parameters()`, `state_dict()` and `train()` of the method never reach them, while
    `.to()` does. Each normalises its input itself.

    Args:
        networks: Modules with `forward(*inputs) -> logits` and `features(*inputs, taps) -> dict`; outputs are averaged.
        dtype: Precision of the forward pass (autocast); None follows the Trainer's.
        inputs: Keys of the batch that the networks take, in order.
    """

    def __init__(
        self, networks: Sequence[nn.Module], dtype: Dtype | None = None, inputs: Sequence[str] = ("image",)
    ) -> None:
        super().__init__()
        self._networks = tuple(network.eval().requires_grad_(False) for network in networks)
        self.dtype = getattr(torch, dtype) if dtype else None
        self.inputs = tuple(inputs)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits for a batch, [B, ...] float32: the mean over the networks."""
        with self._frozen(batch):
            logits = [network(*self._inputs(batch)) for network in self._networks]
        return torch.stack(logits).mean(0).float() if len(logits) > 1 else logits[0].float()

    def features(self, batch: dict[str, Tensor], taps: Sequence[str]) -> dict[str, Tensor]:
        """Return the features at `taps`; the networks run no further than the deepest of them."""
        with self._frozen(batch):
            found = [network.features(*self._inputs(batch), taps) for network in self._networks]  # type: ignore[operator]
        return {
            tap: torch.stack([each[tap] for each in found]).mean(0) if len(found) > 1 else found[0][tap] for tap in taps
        }

    @property
    def networks(self) -> tuple[Any, ...]:
        """The networks, for a look at them."""
        return self._networks

    def _inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        return [batch[key] for key in self.inputs]

    @contextmanager
    def _frozen(self, batch: dict[str, Tensor]) -> Iterator[None]:
        device = batch[self.inputs[0]].device.type
        if self.dtype is None:
            with torch.no_grad():
                yield
        else:
            with torch.no_grad(), torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32):
                yield

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> "FrozenTeacher":
        for network in self._networks:
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)
