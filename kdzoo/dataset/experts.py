"""Expert trajectories of image classifiers: networks trained on the real images, and every epoch's parameters kept."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.augment import hash32
from kdzoo.dataset.augment import DSA, augment, operations
from kdzoo.dataset.networks import Network, make
from kdzoo.dataset.preprocessing import Preprocessing
from kdzoo.dataset.real_images import RealImages
from kdzoo.errors import UserError
from kdzoo.teachers import sources
from kdzoo.trajectories import experts as trajectories
from kdzoo.trajectories.flat import flatten
from kdzoo.trajectories.sharpness import GSAM

# Raise it when a change of kdzoo makes the same settings train other experts.
RECIPE_VERSION = 1


@dataclass(frozen=True)
class Experts:
    """How experts are trained: plain SGD unless told otherwise.

    Args:
        count: How many there are.
        epochs: Passes over the real images; the parameters are kept before the first and after each.
        lr: Learning rate.
        momentum, weight_decay: Of SGD.
        batch_size: Images per step.
        augmentation: Operations of `kdzoo.dataset.augment`, joined by `_`, drawn for each batch; or `none`.
        rho: Radius of adaptive GSAM, 0 for none; see `kdzoo.trajectories.sharpness`.
        alpha: Its share of the surrogate gap.
        decay: What the learning rate is multiplied with, once, after half of the epochs and two more; the optimizer is
            a new one then, without momentum.
        clip: Factors of the cross-entropy in the first epochs.
        gradient_penalty: Weight of `gradient_penalty`.
        seed: Of all experts; that of the run has no part in them.
    """

    count: int = 100
    epochs: int = 50
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    augmentation: str = DSA
    rho: float = 0.0
    alpha: float = 0.0
    decay: float = 1.0
    clip: tuple[float, ...] = ()
    gradient_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.count, self.epochs, self.batch_size) < 1 or self.lr <= 0:
            raise UserError("Experts need a positive lr, and count, epochs and batch_size of 1 or more.")
        if min(self.rho, self.alpha, self.gradient_penalty) < 0:
            raise UserError("The rho, alpha and gradient_penalty of experts must not be negative.")
        operations(self.augmentation)


def gradient_penalty(network: nn.Module, images: Tensor) -> Tensor:
    """Mean of (|g| - 1)^2, where g is the gradient of the sum of all logits by a pixel, normed over its channels.

    Args:
        network: Classifies images.
        images: float [B, C, H, W], not augmented.
    """
    images = images.detach().requires_grad_()
    gradient = torch.autograd.grad(network(images).sum(), images, create_graph=True)[0]
    # |0| has no derivative: a pixel that no logit depends on stays as it is.
    length = (gradient.square().sum(1) + 1e-12).sqrt()  # [B, H, W]
    return ((length - 1) ** 2).mean()


def trajectory(network: nn.Module, real: RealImages, preprocess: Preprocessing, how: Experts) -> Iterator[np.ndarray]:
    """Train a network on the real images, from torch's global generator.

    Yields:
        Its parameters, float32 [P], before the first epoch and after each.

    Raises:
        UserError: The training diverges.
    """
    device = next(network.parameters()).device
    network.train()
    lr = how.lr
    optimizer = _optimizer(network, how, lr)
    yield flatten(network).cpu().numpy()
    for epoch in range(how.epochs):
        factor = how.clip[epoch] if epoch < len(how.clip) else 1.0
        for rows in torch.randperm(len(real)).split(how.batch_size):
            images = preprocess(real.pixels(rows, device))
            batch = images, augment(images, how.augmentation), real.labels[rows].to(device)
            optimizer.step(partial(_backward, optimizer, network, how, factor, *batch))
        weights = flatten(network)
        if not torch.isfinite(weights).all():
            raise UserError(f"An expert diverged in epoch {epoch + 1} of {how.epochs}: lower experts.lr ({how.lr}).")
        yield weights.cpu().numpy()
        if how.decay != 1.0 and epoch == how.epochs // 2 + 1:
            lr *= how.decay
            optimizer = _optimizer(network, how, lr)


def _backward(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    how: Experts,
    factor: float,
    images: Tensor,
    augmented: Tensor,
    labels: Tensor,
) -> Tensor:
    loss = factor * cross_entropy(network(augmented), labels)
    if how.gradient_penalty:  # not scaled by the factor
        loss = loss + how.gradient_penalty * gradient_penalty(network, images)
    optimizer.zero_grad()
    loss.backward()
    return loss


def _optimizer(network: nn.Module, how: Experts, lr: float) -> Any:
    sgd = torch.optim.SGD(network.parameters(), lr, momentum=how.momentum, weight_decay=how.weight_decay)
    return GSAM(sgd, network, how.rho, how.alpha, adaptive=True) if how.rho else sgd


class Trajectories(trajectories.Trajectories):
    """The experts of a fit, trained where they are missing.

    Args:
        real: The real images.
        preprocess: What the networks see of them.
        shape: `network`, `width`, `depth` of `kdzoo.dataset.networks.make`.
        spec: The spec of the data.
        how: How experts are trained.
        device: Where.
    """

    def __init__(
        self,
        real: RealImages,
        preprocess: Preprocessing,
        shape: tuple[str, int, int | None],
        spec: dict[str, Any],
        how: Experts,
        device: torch.device,
    ) -> None:
        name, width, depth = shape
        identity = {
            "recipe": RECIPE_VERSION,
            "data": "" if sources.untrained() else fingerprint(real),
            # Whatever else a preprocessing has it has from the images.
            "preprocessing": [type(preprocess).__name__, preprocess.mean.tolist(), preprocess.std.tolist()],
            "network": [name, width, depth, spec["channels"], *spec["image_size"], spec["classes"]],
            **{key: value for key, value in asdict(how).items() if key != "count"},
        }
        about = f"{name} on {len(real):,} images of {spec['channels']}x{spec['image_size'][0]}x{spec['image_size'][1]}"

        def network(number: int) -> Network:
            torch.manual_seed(int(hash32(how.seed, number)))
            return make(name, spec, width, depth).to(device)

        def train(network: Network) -> Iterator[np.ndarray]:
            return trajectory(network, real, preprocess, how)

        super().__init__(identity, how.count, how.epochs + 1, network, train, about, device)


def fingerprint(real: RealImages) -> str:
    """Hash of the images and labels that experts are trained on."""
    digest: Any = hashlib.sha256()
    digest.update(real.images.contiguous().numpy())
    digest.update(real.labels.contiguous().numpy())
    return digest.hexdigest()
