"""`Coreset`: what methods share that choose real images to stand for their class, see `kdzoo.selection`."""

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
