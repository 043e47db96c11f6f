"""Class partition: the labelled nodes of a class are clustered by what they gather, and each cluster becomes one node.

    h = mean of A_n^2 X over a cluster,    A'_ij = [cos(h_i, h_j) > threshold],  A'_ii = 0
    X' = argmin_X alpha * |A'_n^2 X - h|^2 + tr(X^T L' X)

X' has a closed form: what the condensed nodes gather is close to h, and smooth over their edges (L' is the normalised
Laplacian). Nothing is trained. Source: the class-to-node form of arXiv 2405.13707, without its augmentation and its
weights by confidence; clusters are those of k-means, as many as the label's share asks for.
"""

import torch
from torch import Tensor

from kdzoo.errors import UserError
from kdzoo.graph.matrix import matrix_of, normalise, propagate
from kdzoo.graph.reducers import Graph, Reducer, budget, shares
from kdzoo.selection import k_means


class Partition(Reducer):
    """Makes a node of every cluster of a label.

    Args:
        hops: How far a node gathers.
        threshold: Cosine from which two condensed nodes have an edge; 1 or more: no edges, and X' = h.
        alpha: Weight of the closeness against the smoothness.
    """

    def __init__(self, hops: int = 2, threshold: float = 0.95, alpha: float = 3.0) -> None:
        if hops < 0 or alpha <= 0:
            raise UserError(f"Partition: hops={hops} must not be negative, and alpha={alpha} above 0.")
        self.hops, self.threshold, self.alpha = hops, threshold, alpha

    def reduce(self, graph: Graph, rate: float) -> Graph:
        """Cluster, connect, and solve for the features."""
        gathered = propagate(matrix_of(graph) if self.hops else None, graph["x"], self.hops)
        means, labels = [], []
        for label, count in shares(graph["label"], budget(graph, rate)).items():
            if count:
                means.append(k_means(gathered[graph["label"] == label], count))
                labels.append(graph["label"].new_full((count,), label))
        h, small = torch.cat(means), torch.cat(labels)
        near = torch.nn.functional.normalize(h, dim=1)
        adjacency = (near @ near.T > self.threshold).float().fill_diagonal_(0)
        return {"x": smooth_features(h, adjacency, self.hops, self.alpha), "edges": adjacency.nonzero(), "label": small}


def smooth_features(h: Tensor, adjacency: Tensor, hops: int, alpha: float) -> Tensor:
    """The X' above: of embeddings [n, F] and a symmetric adjacency [n, n], features [n, F]."""
    gather = torch.linalg.matrix_power(normalise(adjacency), hops)
    degree = adjacency.sum(1)
    scale = torch.where(degree > 0, degree, 1).rsqrt()
    laplacian = torch.diag((degree > 0).float()) - scale[:, None] * adjacency * scale
    # Least squares where gathering loses a direction that is smooth as well.
    return torch.linalg.lstsq(alpha * gather.T @ gather + laplacian, alpha * gather.T @ h).solution
