"""`FrozenTeacher`: networks that only teach, live or out of a store."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdzoo.errors import UserError
from kdzoo.teachers import sparse
from kdzoo.teachers.store import Store

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Keep:
    """What a store keeps of a teacher.

    Attributes:
        dtype: `float32` (bit-equal to the live teacher on a CPU) or `float16`.
        views: Number of different views of a sample.
        outputs: `logits`, and taps.
        top_k: Of the logits, only the largest so many and the sum of the rest (`kdzoo.teachers.sparse`); None: all.
        name: What the teacher is called.
        digest: A hash of the networks.
    """

    dtype: Literal["float32", "float16"]
    views: int
    outputs: tuple[str, ...]
    top_k: int | None
    name: str
    digest: str


class FrozenTeacher(nn.Module):
    """One or several networks in evaluation mode, without gradient, outside checkpoints and optimizers.

    The networks are not submodules: `parameters()`, `state_dict()` and `train()` of the method never reach them, while
    `.to()` does. Each normalises its input itself.

    Args:
        networks: Modules with `forward(*inputs) -> logits`, `features(*inputs, taps) -> dict` and
            `forward_with(*inputs, taps) -> (logits, dict)`; outputs are averaged.
        dtype: Precision of the forward pass (autocast); None follows the Trainer's.
        inputs: Keys of the batch that the networks take, in order.
        keep: What a store keeps of their outputs; None without a store.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        dtype: Dtype | None = None,
        inputs: Sequence[str] = ("image",),
        keep: Keep | None = None,
    ) -> None:
        super().__init__()
        self._networks = tuple(network.eval().requires_grad_(False) for network in networks)
        self.dtype = getattr(torch, dtype) if dtype else None
        self.inputs = tuple(inputs)
        self.keep = keep
        self.store: Store | None = None  # once it is filled

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits for a batch, [B, ...] float32: the mean over the networks."""
        return self.features(batch, ["logits"])["logits"]

    def features(self, batch: dict[str, Tensor], taps: Sequence[str]) -> dict[str, Tensor]:
        """Return the features at `taps`, `logits` among them; the networks run once, no further than the deepest.

        Raises:
            UserError: `logits` of a classifier that is not the weights' own.
        """
        if stored := self._stored(batch, taps):
            return stored
        if "logits" in taps:
            self.check_head()
        with self._frozen(batch):
            found = [self._run(network, self._inputs(batch), taps) for network in self._networks]
        mean = {
            tap: torch.stack([each[tap] for each in found]).mean(0) if len(found) > 1 else found[0][tap] for tap in taps
        }
        return {tap: value.float() if tap == "logits" else value for tap, value in mean.items()}

    def check_head(self) -> None:
        """Raise a `UserError` if a network's classifier is a new one, in the place of what its weights came with."""
        for network in self._networks:
            classes = getattr(network, "replaced", None)
            if classes is not None:
                raise UserError(
                    f"The weights of the teacher '{network.architecture}' have a classifier of {classes} classes, "
                    "which are not those of the data, and a new one has nothing to teach: train it on these classes "
                    "first (kdzoo fit --model finetune), or take a method that reads its features alone."
                )

    def tap_shapes(self, spec: dict[str, Any], taps: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tap without its batch axis.

        Raises:
            UserError: Several teachers differ in one.
        """
        first, *others = [network.tap_shapes(spec, taps) for network in self.networks]
        for other in others:
            for tap in taps:
                if other[tap] != first[tap]:
                    raise UserError(
                        f"The teachers' features at '{tap}' are of shapes {first[tap]} and {other[tap]}, which have no "
                        "mean: take teachers of one architecture, or one teacher."
                    )
        return first

    @staticmethod
    def _run(network: Any, inputs: list[Tensor], taps: Sequence[str]) -> dict[str, Tensor]:
        others = [tap for tap in taps if tap != "logits"]
        if len(others) == len(taps):
            return network.features(*inputs, taps)
        logits, found = network.forward_with(*inputs, others) if others else (network(*inputs), {})
        return {"logits": logits, **found}

    def with_stored(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add what the store has for the batch's `index` and `view` (int64 [B], not yet on an accelerator)."""
        if self.store is None or "index" not in batch:
            return batch
        index, view = batch["index"].numpy(), batch["view"].numpy()
        read: dict[str, Tensor] = {
            output: torch.from_numpy(self.store.read(output, index, view)) for output in self.store.shapes
        }
        for values in read.values():
            if torch.isnan(values.flatten(1)[:, 0]).any():
                raise UserError(
                    f"The store {self.store.folder} has gaps where images could not be read when it was filled: "
                    f"`kdzoo cache prune {self.store.folder.name}` lets the next run fill it again."
                )
        return {**batch, **{f"{self.store.folder.name}/{output}": values for output, values in read.items()}}

    def _stored(self, batch: dict[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """The outputs from the batch, float32, if all of them are there; else nothing."""
        if self.store is None:
            return {}
        prefix, found = f"{self.store.folder.name}/", {}
        for output in outputs:
            if prefix + output in batch:
                found[output] = batch[prefix + output].float()
            elif output == "logits" and prefix + sparse.IDS in batch:
                values, ids = batch[prefix + sparse.VALUES], batch[prefix + sparse.IDS]
                found[output] = sparse.spread(values, ids, self.store.identity["classes"])
            else:
                return {}
        return found

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
