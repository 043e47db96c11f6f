"""What gradient-matching methods share: the loops over a network that is trained on the way."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdzoo.dataset.augment import augment, operations
from kdzoo.dataset.distiller import Distiller, Init
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.networks import Network
from kdzoo.errors import UserError
from kdzoo.losses.matching import gradient_distance

# (updates of the images, epochs of the network between two of them) by images per class: the authors' table.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class GradientMatching(Distiller):
    """Makes the synthetic images of each class give a network the gradient that the real ones give it.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images or from noise.
        lr_img: Learning rate of the pixels.
        momentum_img: Its momentum.
        lr_net: Learning rate of the network, plain SGD on the synthetic images.
        loops: Updates of the images in an iteration, and epochs of the network between two; None: the authors' for this
            number of images per class.
        batch_real: Real images of each class for an update.
        augmentation: What both batches go through.
        network, width, depth: Architecture that distils and judges.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        ipc: int,
        init: Init,
        lr_img: float,
        momentum_img: float,
        lr_net: float,
        loops: tuple[int, int] | None,
        batch_real: int,
        augmentation: str,
        network: str,
        width: int,
        depth: int | None,
        evaluation: Evaluation,
    ) -> None:
        super().__init__(ipc, init, lr_img, momentum_img, network, width, depth, evaluation)
        if loops is None and ipc not in LOOPS:
            raise UserError(
                f"{type(self).__name__}: there are no published loops for ipc={ipc}: give loops, such as [10, 50], the "
                "updates of the images in an iteration and the epochs of the network between two."
            )
        self.updates, self.epochs = loops or LOOPS[ipc]
        if self.updates < 1 or self.epochs < 0 or batch_real < 1:
            raise UserError(
                f"{type(self).__name__}: loops={[self.updates, self.epochs]} needs an update or more, and epochs and "
                "batch_real must not be negative."
            )
        operations(augmentation)
        self.lr_net, self.batch_real, self.augmentation = lr_net, batch_real, augmentation

    def distil_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take a fresh network through its life: before each stretch of training the images are updated."""
        network = self.fresh_network()
        sgd = torch.optim.SGD(network.parameters(), lr=self.lr_net)
        pixels = self.optimizers().optimizer  # type: ignore[union-attr]
        total = self.images.new_zeros(())
        for number in range(self.updates):
            if number > 0:
                pixels.step()  # the last update is the Trainer's
                self._train(network, sgd)
                pixels.zero_grad()
            total = total + self._match(network)
        return {"distance": total / (self.updates * len(self.real.rows))}

    def _match(self, network: Network) -> Tensor:
        """Add the gradient of the distance, summed over the classes, to the images' one; return the distance."""
        weights = [weight for weight in network.parameters() if weight.ndim > 1]  # no others count
        total = self.images.new_zeros(())
        # Class by class: faster than one batched call where weights' gradients are wanted one by one (measured on a
        # CPU), and the memory of one class.
        for label, images in enumerate(self.images.split(self.ipc)):
            real = self.real_images(self.real.draw(label, self.batch_real))
            seed = int(torch.randint(2**31, ()))
            given, made = (augment(x, self.augmentation, seed, siamese=True) for x in (real, images))
            targets = [self.labels.new_full((len(x),), label) for x in (given, made)]
            wanted = torch.autograd.grad(cross_entropy(network(given), targets[0]), weights)
            found = torch.autograd.grad(cross_entropy(network(made), targets[1]), weights, create_graph=True)
            distance = gradient_distance(wanted, found)
            self.manual_backward(distance, inputs=[self.images])
            total = total + distance.detach()
        return total

    def _train(self, network: Network, sgd: torch.optim.Optimizer) -> None:
        """Train the network on the synthetic images as they are."""
        images = self.images.detach()
        for _ in range(self.epochs):
            for rows in torch.randperm(len(images)).split(self.evaluation.batch_size):
                x = augment(images[rows], self.augmentation)
                loss = cross_entropy(network(x), self.labels[rows])
                sgd.zero_grad()
                loss.backward()
                sgd.step()
