"""How a synthetic set is judged: networks that have never seen real images are trained on it alone.

The protocol that everybody compares under (A0 of arXiv 2006.05929 and its successors): fresh weights, SGD with momentum
0.9 and weight decay 5e-4, batches of 256, the rate times 0.1 after half of the epochs with a new optimizer. What counts
is the last state of each network; there is no choice of the best.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.dataset.augment import DSA, augment, operations
from kdzoo.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a synthetic set.

    Args:
        networks: How many fresh networks are trained; the scores are their mean and standard deviation.
        epochs: Passes over the synthetic set.
        lr: Learning rate at the start; a learned one takes its place for the network that it was learned with.
        momentum: Of SGD.
        weight_decay: L2 penalty.
        batch_size: Images per step.
        augmentation: Operations of `kdzoo.dataset.augment`, joined by `_`, drawn for each batch; or `none`.
        pool: Also train as many networks of each other architecture of the family, and report each.
        robustness: Also report LRS and ARS, which takes networks trained on as many random real images and on all.
        real_epochs: Passes over all real images for that.
        during_fit: Also train networks at each validation inside a fit, if the data have a validation part.
    """

    networks: int = 5
    epochs: int = 1000
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    augmentation: str = DSA
    pool: bool = False
    robustness: bool = False
    real_epochs: int = 30
    during_fit: bool = False

    def __post_init__(self) -> None:
        if min(self.networks, self.epochs, self.batch_size, self.real_epochs) < 1 or self.lr <= 0:
            raise UserError(
                "An evaluation needs a positive lr, and 1 or more networks, epochs, real_epochs and batch_size."
            )
        operations(self.augmentation)


# Of the logits [b, classes], the augmented images that they are of, and the labels; returns a scalar.
Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]


def label_loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels, hard or soft."""
    return cross_entropy(logits, labels)


def train(
    network: nn.Module,
    fetch: Callable[[Tensor], tuple[Tensor, Tensor]],
    size: int,
    how: Evaluation,
    lr: float,
    criterion: Criterion = label_loss,
) -> None:
    """Train a network by the protocol, in place; draws from torch's global generator.

    Args:
        network: Takes what `fetch` gives.
        fetch: rows int64 [b] to normalised images [b, C, H, W] and labels: int64 [b], or probabilities [b, classes].
        size: Images to train on.
        how: Epochs, batch size, optimizer and augmentation.
        lr: Learning rate at the start.
        criterion: What is minimised.
    """
    network.train()
    optimizer = _sgd(network, how, lr)
    for epoch in range(how.epochs):
        if epoch == how.epochs // 2 + 1:
            optimizer = _sgd(network, how, 0.1 * lr)
        for rows in torch.randperm(size).split(how.batch_size):
            images, labels = fetch(rows)
            images = augment(images, how.augmentation)
            loss = criterion(network(images), images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()


def _sgd(network: nn.Module, how: Evaluation, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=lr, momentum=how.momentum, weight_decay=how.weight_decay)
