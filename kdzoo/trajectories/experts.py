"""The expert trajectories of a fit: trained where the cache lacks them, read a piece at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdzoo.files import cache_dir
from kdzoo.teachers import sources
from kdzoo.teachers.recipe import used
from kdzoo.trajectories.buffer import Buffer
from kdzoo.trajectories.flat import flatten


class Trajectories:
    """The experts of a fit. Inside of `untrained_teachers` none is trained: networks as they begin take their place.

    Args:
        identity: All that shapes a trajectory, as plain values; the number of experts is no part of it.
        count: How many experts there are.
        snapshots: Snapshots of each, the one before the first step included.
        network: Of an expert's number, the network as it begins; sets the seed of all that is random in its training.
        train: Trains it, and yields its parameters, float32 [P], one snapshot after the other.
        about: What they are, in a few words.
        device: Where.
    """

    def __init__(
        self,
        identity: dict[str, Any],
        count: int,
        snapshots: int,
        network: Callable[[int], nn.Module],
        train: Callable[[Any], Iterator[np.ndarray]],
        about: str,
        device: torch.device,
    ) -> None:
        self.network, self.device = network, device
        self.devices = [device] if device.type == "cuda" else []  # whose random states are set aside
        self.buffer: Buffer | None = None
        if sources.untrained():
            return
        with torch.random.fork_rng(self.devices):
            size = len(flatten(network(0)))
        self.buffer = Buffer(cache_dir() / "trajectories", identity, snapshots, size, about)

        def expert(number: int) -> Iterator[np.ndarray]:
            with torch.random.fork_rng(self.devices):
                yield from train(network(number))

        self.buffer.fill(count, expert)
        used(self.buffer.folder)

    def read(self, expert: int, snapshots: list[int]) -> Tensor:
        """An expert's parameters at each of `snapshots`, float32 [len(snapshots), P], on the device."""
        if self.buffer is not None:
            return torch.from_numpy(self.buffer.read(expert, snapshots)).to(self.device)
        with torch.random.fork_rng(self.devices):
            drawn = [flatten(self.network(1000 * expert + snapshot)) for snapshot in snapshots]
        return torch.stack(drawn)
