"""The judges of a synthetic set: groups of fresh networks, each group trained on one set of images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from kdzoo.datamodules.augment import hash32
from kdzoo.dataset.evaluation import Criterion, Evaluation, label_loss, train
from kdzoo.dataset.networks import Network, make
from kdzoo.teachers import sources

Fetch = Callable[[Tensor], tuple[Tensor, Tensor]]


class Judges:
    """Groups of networks, and how often each network is right.

    Args:
        spec: The spec of the data.
        width, depth: Of ConvNets.
        seed: Of the weights and of the training: the networks of all groups of an architecture start alike.
        device: Where they are trained.
    """

    def __init__(self, spec: dict[str, Any], width: int, depth: int | None, seed: int, device: torch.device) -> None:
        self.spec, self.width, self.depth, self.seed, self.device = spec, width, depth, seed, device
        self.groups: dict[str, list[tuple[Network, MulticlassAccuracy]]] = {}

    def train(
        self,
        group: str,
        architecture: str,
        fetch: Fetch,
        size: int,
        how: Evaluation,
        lr: float,
        criterion: Criterion = label_loss,
    ) -> None:
        """Make a group of `how.networks` networks and train it, see `kdzoo.dataset.evaluation.train`.

        The random state outside is left alone. Inside of `untrained_teachers` nothing is trained.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        self.groups[group] = []
        for number in range(how.networks):
            with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
                torch.manual_seed(int(hash32(self.seed, number)))
                network = make(architecture, self.spec, self.width, self.depth).to(self.device)
                if not sources.untrained():
                    train(network, fetch, size, how, lr, criterion)
            accuracy = MulticlassAccuracy(self.spec["classes"], average="micro").to(self.device)
            self.groups[group].append((network, accuracy))

    def update(self, x: Tensor, label: Tensor) -> None:
        """Let all networks see normalised images [B, C, H, W] with their labels [B]."""
        for group in self.groups.values():
            for network, accuracy in group:
                accuracy.update(network(x), label)

    def percent(self, group: str) -> Tensor:
        """The accuracy of each network of a group over all images, over all ranks, in percent: [networks]."""
        return 100 * torch.stack([accuracy.compute() for _, accuracy in self.groups[group]])
