"""Active learning over views and rays: what the student finds hard comes again.

Both pools are buffers, so that a resumed run has them; every choice is a function of (seed, step), so that all
processes make the same.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from kdzoo.datamodules.augment import uniform
from kdzoo.datamodules.cameras import Prior, turned

Pairing = Literal["fixed", "as_released"]
FIRST_EPOCH = 4  # from which poses are collected, as published
ORDER, POSES, TURNS, SLOTS, PLACES, RAYS = 100, 101, 110, 120, 121, 130  # slots of the random numbers


class PosePool(nn.Module):
    """The poses of an epoch, one a step, and the hard ones among those of earlier epochs.

    Args:
        count: Poses of an epoch.
        size: Of the pool; 0 for none.
        share: Of an epoch's poses that go into the pool, and that come out of it.
        pairing: `fixed`: each pose with its own score; `as_released`: scores in the order of the steps beside poses in
            the order of the data, which differ, so that in effect random poses are kept.
        seed: Of all choices.
    """

    poses: Tensor
    scores: Tensor
    pool: Tensor
    filled: Tensor
    epoch: Tensor

    def __init__(self, count: int, size: int, share: float, pairing: Pairing, seed: int = 0) -> None:
        super().__init__()
        self.count, self.size, self.share, self.pairing, self.seed = count, size, share, pairing, seed
        self.register_buffer("poses", torch.eye(4).repeat(count, 1, 1))
        self.register_buffer("scores", torch.full((count,), torch.inf))  # dB; infinite: not rendered yet
        self.register_buffer("pool", torch.eye(4).repeat(size, 1, 1))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("epoch", torch.tensor(-1))

    def draws(self, *numbers: int, slot: int) -> Tensor:
        """Random numbers [numbers] of this epoch."""
        rows = torch.arange(numbers[0])[:, None]
        columns = torch.arange(numbers[1] if len(numbers) > 1 else 1)
        found = uniform(self.seed, rows, int(self.epoch), 1000 * slot + columns)
        return found if len(numbers) > 1 else found[:, 0]

    def number(self, step: int) -> int:
        """Which of the epoch's poses this step has: each once, shuffled."""
        order = self.draws(self.count, slot=ORDER).argsort()
        return int(order[step % self.count])

    def pose(self, step: int, prior: Prior) -> Tensor:
        """The pose [4, 4] of a step; a new epoch gets new ones."""
        if step // self.count != int(self.epoch):
            self._next_epoch(step // self.count, prior)
        return self.poses[self.number(step)]

    def record(self, step: int, score: Tensor) -> None:
        """Keep how well the pose of this step was rendered, in dB."""
        place = self.number(step) if self.pairing == "fixed" else step % self.count
        self.scores[place] = score

    @property
    def full(self) -> bool:
        """Whether poses come out of the pool."""
        return 0 < self.size <= int(self.filled)

    def _next_epoch(self, epoch: int, prior: Prior) -> None:
        hard = int(self.share * self.count)
        scored = torch.isfinite(self.scores)
        worst = None
        if self.size and hard and epoch >= FIRST_EPOCH and int(scored.sum()) >= hard:
            worst = self.poses[self.scores.argsort(stable=True)[:hard]].clone()
        self.epoch.fill_(epoch)
        self.poses.copy_(prior.poses(self.draws(self.count, 6, slot=POSES)))
        self.scores.fill_(torch.inf)
        if worst is None:
            return
        if self.full:
            slots = self.draws(self.size, slot=SLOTS).argsort()[:hard]
            places = self.draws(self.count, slot=PLACES).argsort()[: len(slots)]
            again = turned(self.pool[slots].cpu(), self.draws(len(slots), 3, slot=TURNS))
            self.poses[places] = again.to(self.poses.device)
            self.pool[slots] = worst[: len(slots)]
        else:
            start = int(self.filled)
            taken = worst[: self.size - start]
            self.pool[start : start + len(taken)] = taken
            self.filled += len(taken)


class RayPool(nn.Module):
    """Hard rays: origins and directions.

    Args:
        size: Of the pool; 0 for none.
        seed: Of all choices.
    """

    rays: Tensor
    filled: Tensor

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        self.size, self.seed = size, seed
        self.register_buffer("rays", torch.zeros(size, 6))
        self.register_buffer("filled", torch.tensor(0))

    @property
    def full(self) -> bool:
        """Whether rays come out of the pool."""
        return 0 < self.size <= int(self.filled)

    def slots(self, count: int, step: int) -> Tensor:
        """Which rays come again in this step, int64 [count]; none before the pool is full."""
        if not self.full:
            return torch.zeros(0, dtype=torch.int64)
        return (uniform(self.seed, torch.arange(count), step, RAYS).double() * self.size).long()

    def put(self, rays: Tensor, slots: Tensor) -> None:
        """Take in hard rays [n, 6], the hardest first: in place of those at `slots`, or until the pool is full."""
        if self.full:
            self.rays[slots.to(self.rays.device)] = rays[: len(slots)]
            return
        start = int(self.filled)
        taken = rays[: self.size - start]
        self.rays[start : start + len(taken)] = taken
        self.filled += len(taken)
