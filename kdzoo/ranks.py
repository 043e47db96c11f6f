"""This process among those of a run."""

import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from kdzoo.errors import UsageError

T = TypeVar("T")


def rank() -> int:
    """The number of this process: 0 writes and speaks."""
    return int(getattr(rank_zero_only, "rank", None) or 0)


def of_all_ranks(value: T) -> list[T]:
    """The values that all ranks have given, in their order; all ranks must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def global_batch(values: Tensor) -> Tensor:
    """The rows of all ranks, [ranks * B, ...], with gradient, for losses that compare the samples of a batch.

    Where every rank computes the same loss of the global batch, the mean of the ranks' gradients is the gradient of
    that loss. All ranks must call it, with as many rows each.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    return _GlobalBatch.apply(values)


class _GlobalBatch(torch.autograd.Function):
    """Forward: gather the ranks' rows; backward: the sum of what all ranks say about this rank's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def need_one_folder() -> None:
    """Raise a UsageError if an external launcher has started the ranks: they could not agree on a folder's name."""
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        raise UsageError("Several processes were started for this run: give all of them the same --run_dir.")
