"""The order of an epoch as a pure function of (seed, epoch), so that a killed run can continue inside it."""

from collections.abc import Iterator

import torch
from torch.utils.data import DistributedSampler

from kdzoo.datamodules.augment import hash32


class EpochOrder(DistributedSampler):
    """Yields (position, view) pairs of one epoch.

    It is a `DistributedSampler` in name only: that is how Lightning knows that the order is already shared out among
    the ranks. Nothing is random but the permutation, which every rank computes alike.

    Args:
        size: number of samples.
        seed: seed of the order.
        shuffle: True: a new permutation each epoch, of which every rank takes the same number (the remainder is
            dropped). False: ascending order, every sample exactly once over all ranks.
        views: view = epoch modulo `views`; None: view = epoch.
        epoch: the first epoch. An earlier one is never walked again: of a checkpoint on the last batch of an epoch,
            Lightning announces the finished epoch before it moves on.
        start: how many of this rank's samples to leave out in the first epoch.
        rank, world_size: this process and the number of processes.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        shuffle: bool = True,
        views: int | None = None,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size, self.seed, self.shuffle, self.views = size, seed, shuffle, views
        self.first_epoch = self.epoch = epoch
        self.start, self.rank, self.world_size = start, rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = max(epoch, self.first_epoch)

    def __len__(self) -> int:
        if self.shuffle:
            return self.size // self.world_size
        return len(range(self.rank, self.size, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.arange(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(int(hash32(self.seed, self.epoch)))
            order = torch.randperm(self.size, generator=generator)
        view = self.epoch if self.views is None else self.epoch % self.views
        mine = order[self.rank :: self.world_size][: len(self)]
        start, self.start = self.start, 0
        for position in mine[start:].tolist():
            yield position, view
