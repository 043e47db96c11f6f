"""`GradientMatching`: the condensed nodes of a class give a network the gradient that the real ones give it.

loss = sum_c n_c / max n * D(grad CE(f(A, X)_c, c), grad CE(f(A', X')_c, c))
D = sum over weights and their output columns of 1 - cos
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.graph.condensation import Condensation
from kdzoo.graph.matrix import MatrixNetwork
from kdzoo.losses.matching import row_distances


class GradientMatching(Condensation):
    """Matches gradients, class by class.

    Attributes:
        batch_real: Real nodes of a class in an update, drawn anew for each; all of them if they are fewer.
    """

    batch_real = 256

    def distance(self, network: MatrixNetwork, matrix: Tensor | None) -> Tensor:
        """The distance of the gradients, summed over the classes."""
        # Rows of the weights are inputs: the distance compares output by output. Biases do not count.
        weights = list(network.weights)
        x, real_matrix, real_label = self.given
        real = network(x, real_matrix)  # [N, C]
        wanted = []
        for label in self.labels.unique().tolist():
            nodes = (real_label == label).nonzero()[:, 0]
            if len(nodes) > self.batch_real:
                nodes = nodes[torch.randperm(len(nodes))[: self.batch_real].to(nodes.device)]
            loss = cross_entropy(real[nodes], real_label[nodes])
            wanted.append(torch.autograd.grad(loss, weights, retain_graph=True))
        found = self.class_gradients(network(self.x, matrix), weights)
        counts = self.labels.bincount()
        share = counts[counts > 0] / counts.max()
        total = self.x.new_zeros(())
        for of_classes, ours in zip(zip(*wanted), found):
            rows = row_distances(torch.stack(of_classes).mT, ours.mT)  # [classes, out]
            total = total + (share * rows.sum(1)).sum()
        return total

    def class_gradients(self, logits: Tensor, weights: list[nn.Parameter]) -> tuple[Tensor, ...]:
        """The gradients of every class's mean loss on the condensed nodes, differentiable: [classes, in, out] each."""
        of_class = (self.labels == self.labels.unique()[:, None]).float()  # [classes, n]
        losses = of_class / of_class.sum(1, keepdim=True) @ cross_entropy(logits, self.labels, reduction="none")
        one_each = torch.eye(len(losses), device=losses.device)
        return torch.autograd.grad(losses, weights, one_each, is_grads_batched=True, create_graph=True)
