"""Coresets: which real images stand for their class. Pure functions of features, and what the methods share.

Every function takes the features [n, D] of one class and returns the rows of its choice, int64 [count], all different.
Source: herding, Welling, 2009; k-center, Sener and Savarese, arXiv 1708.00489; k-means with the nearest images, the
baseline of DC-Bench, arXiv 2207.09639.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kdzoo.console import say
from kdzoo.dataset.distiller import Distiller
from kdzoo.dataset.evaluation import Evaluation, train
from kdzoo.errors import UserError
from kdzoo.teachers import sources

Embedding = Literal["network", "pixels"]
CHUNK = 1024  # images at a time


def herding(features: Tensor, count: int) -> Tensor:
    """Choose one after the other the image that brings the mean of the chosen closest to the mean of all."""
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for number in range(count):
        # argmin |mean * (number + 1) - total - f|, without a table of differences
        wanted = mean * (number + 1) - total
        distance = (features**2).sum(1) - 2 * features @ wanted
        row = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(row)
        free[row] = False
        total = total + features[row]
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Choose the image nearest to the mean, then always the one that is farthest from all that were chosen."""
    row = int(((features - features.mean(0)) ** 2).sum(1).argmin())
    chosen = [row]
    nearest = torch.full((len(features),), torch.inf, device=features.device)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, ((features - features[row]) ** 2).sum(1))
        nearest[row] = -torch.inf  # never again, also where all others are copies
        row = int(nearest.argmax())
        chosen.append(row)
    return torch.tensor(chosen)


def k_means(features: Tensor, count: int, iterations: int = 100) -> Tensor:
    """Centres [count, D] of Lloyd's algorithm, started by k-means++ from torch's generator.

    A centre that has lost all its points moves to the point that is farthest from its own centre.
    """
    centres = features[torch.randint(len(features), (1,))]
    for _ in range(count - 1):
        distance = torch.cdist(features, centres).min(1).values ** 2
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        centres = torch.cat([centres, features[torch.multinomial(weights.cpu(), 1)]])
    assigned = torch.full((len(features),), -1, device=features.device)
    for _ in range(iterations):
        distance, nearest = torch.cdist(features, centres).min(1)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        sizes = torch.bincount(assigned, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, assigned, features)
        centres = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero()[:, 0]
        centres[empty] = features[distance.topk(len(empty)).indices]
    return centres


def nearest_to(centres: Tensor, features: Tensor) -> Tensor:
    """Choose the image nearest to each centre [count, D], one after the other, never an image twice."""
    distance = torch.cdist(centres, features)  # [count, n]
    chosen = []
    for row in distance:
        best = int(row.argmin())
        chosen.append(best)
        distance[:, best] = torch.inf
    return torch.tensor(chosen)


class Coreset(Distiller):
    """Chooses the images in the first iteration; there is nothing to do in any other.

    A subclass implements `select`, by the features of one class.

    Args:
        ipc: Images per class.
        embedding: Where distances are taken: penultimate features of a network that is trained on all real images
            first, or the pixels.
        epochs: Of that training; its other settings are those of `evaluation`.
        network, width, depth: Architecture of the embedding and of the judges.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        ipc: int,
        embedding: Embedding,
        epochs: int,
        network: str,
        width: int,
        depth: int | None,
        evaluation: Evaluation,
    ) -> None:
        super().__init__(ipc, "real", 0.0, 0.0, network, width, depth, evaluation)
        if epochs < 1:
            raise UserError(f"{type(self).__name__}: an embedding of {epochs} epochs is not trained: give 1 or more.")
        self.embedding, self.epochs = embedding, epochs

    def select(self, features: Tensor) -> Tensor:
        """Rows of the `ipc` chosen among the images of a class with these features [n, D]."""
        raise NotImplementedError

    def start(self) -> None:
        """Leave the images empty: the first iteration fills them."""

    def distil_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose, once; the optimizer's step that follows has no gradient and only counts."""
        if self.trainer.global_step == 0:
            self.set_images(self.chosen())
        return {"chosen": self.images.new_zeros(())}

    def chosen(self) -> Tensor:
        """Rows of the chosen images, class by class."""
        embed = self._embedding()
        picked = []
        for rows in self.real.rows:  # the features of one class at a time
            with torch.no_grad():
                features = torch.cat([embed(self.real_images(part)) for part in rows.split(CHUNK)])
            picked.append(rows[self.select(features).cpu()])
        return torch.cat(picked)

    def _embedding(self) -> Callable[[Tensor], Tensor]:
        """What makes features [n, D] of images [n, C, H, W]."""
        if self.embedding == "pixels":
            return lambda images: images.flatten(1)
        network = self.fresh_network()
        if not sources.untrained():
            say("embedding", f"a {self.network} is trained on {len(self.real):,} images for {self.epochs} epochs")
            labels = self.real.labels.to(self.device)
            how = replace(self.evaluation, epochs=self.epochs)
            train(network, lambda rows: (self.real_images(rows), labels[rows]), len(self.real), how, how.lr)
        return network.features
