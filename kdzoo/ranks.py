"""This process among those of a run."""

import os
from typing import TypeVar

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

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


def need_one_folder() -> None:
    """Raise a UsageError if an external launcher has started the ranks: they could not agree on a folder's name."""
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        raise UsageError("Several processes were started for this run: give all of them the same --run_dir.")
