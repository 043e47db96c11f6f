"""`GradientMatching`: the condensed nodes of a class give a network the gradient that the real ones give it.

loss = sum_c n_c / max n * D(grad CE(f(A, X)_c, c), grad CE(f(A', X')_c, c))
D = sum over weights and their output columns of 1 - cos
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdzoo.graph.condensation import Condensation
from kdzoo.graph.matrix import MatrixNetwork
from kdzoo.losses.matching import gradient_distance


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
        condensed = network(self.x, matrix)  # [n, C]
        counts = self.labels.bincount()
        total = self.x.new_zeros(())
        for label in self.labels.unique().tolist():
            nodes = (real_label == label).nonzero()[:, 0]
            if len(nodes) > self.batch_real:
                nodes = nodes[torch.randperm(len(nodes))[: self.batch_real].to(nodes.device)]
            own = condensed[self.labels == label]
            wanted = torch.autograd.grad(cross_entropy(real[nodes], real_label[nodes]), weights, retain_graph=True)
            targets = self.labels[self.labels == label]
            found = torch.autograd.grad(cross_entropy(own, targets), weights, create_graph=True)
            distance = gradient_distance([each.T for each in wanted], [each.T for each in found])
            total = total + counts[label] / counts.max() * distance
        return total
