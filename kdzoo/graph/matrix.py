"""Graph networks in matrices: for condensed graphs, whose adjacency is dense, learned, or the identity.

    gcn:  H_{l+1} = relu(A_n H_l W_l + b_l), no relu at the last layer
    sgc:  A_n^L X W + b
    A_n = D^-1/2 (A + I) D^-1/2

A graph network of `kdzoo.graph.networks` takes edges; these take A_n itself, so that second derivatives by A are plain
matrix products. Source: arXiv 1609.02907, eq. 2 and 9, whose authors' code gives the start of the weights;
arXiv 1902.07153, eq. 7.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from kdzoo.errors import UserError
from kdzoo.graph.reducers import Graph

NAMES = ("gcn", "sgc")
DENSE = 0.05  # share of edges that are there from which a dense matrix is the faster one


def normalise(adjacency: Tensor) -> Tensor:
    """A dense adjacency [n, n] without loops to D^-1/2 (A + I) D^-1/2, differentiable."""
    whole = adjacency + torch.eye(len(adjacency), device=adjacency.device, dtype=adjacency.dtype)
    scale = whole.sum(1).rsqrt()
    return scale[:, None] * whole * scale


def dense_adjacency(graph: Graph) -> Tensor:
    """The weights of a graph's edges as a matrix [N, N]; loops are left out."""
    size = len(graph["x"])
    matrix = torch.zeros(size, size, device=graph["x"].device)
    edges, weight = _edges(graph)
    matrix.index_put_((edges[:, 0], edges[:, 1]), weight, accumulate=True)
    return matrix


def matrix_of(graph: Graph) -> Tensor | None:
    """A_n of a graph, dense [N, N] or sparse; None for the identity, where there are no edges.

    Row i gathers what comes to node i: the edges that end there. A graph that has its A_n as `matrix` gives that.
    """
    if "matrix" in graph:
        return graph["matrix"]
    edges, weight = _edges(graph)
    size = len(graph["x"])
    if not len(edges):
        return None
    if len(edges) > DENSE * size**2:
        return normalise(dense_adjacency(graph).T)
    ones = torch.arange(size, device=edges.device)
    rows, columns = torch.cat([edges[:, 1], ones]), torch.cat([edges[:, 0], ones])
    weight = torch.cat([weight, weight.new_ones(size)])
    scale = torch.zeros(size, device=edges.device).index_add_(0, rows, weight).rsqrt()
    values = scale[rows] * weight * scale[columns]
    places = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(places, values, (size, size), check_invariants=False).coalesce()


def compact(x: Tensor) -> Tensor:
    """Features [N, F] as a sparse matrix, if few of them are not zero, as in bags of words; else as they are."""
    return x.to_sparse() if (x != 0).float().mean() < DENSE else x


def product(a: Tensor, b: Tensor) -> Tensor:
    """A @ b, where `a` may be sparse."""
    return torch.sparse.mm(a, b) if a.is_sparse else a @ b


def propagate(matrix: Tensor | None, x: Tensor, hops: int = 1) -> Tensor:
    """A_n^hops X, [N, F]."""
    if matrix is not None:
        for _ in range(hops):
            x = product(matrix, x)
    return x


class MatrixNetwork(nn.Module):
    """A GCN or an SGC that takes the normalised adjacency as a matrix.

    Args:
        name: `gcn` or `sgc`.
        features: F.
        classes: C.
        hidden: Width of the layers between; an SGC has none.
        layers: Layers of a GCN, hops of an SGC.
        dropout: Probability in training, after every hidden layer.

    Raises:
        UserError: There is no network of this name, or a number is out of range.
    """

    def __init__(self, name: str, features: int, classes: int, hidden: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        if name not in NAMES:
            raise UserError(f"There is no network '{name}' for condensed graphs: give {' or '.join(NAMES)}.")
        if hidden < 1 or layers < 1 or not 0 <= dropout < 1:
            raise UserError(f"'{name}' needs hidden={hidden} and layers={layers} of 1 or more, dropout={dropout} < 1.")
        self.hops, self.dropout = (layers, 0.0) if name == "sgc" else (1, dropout)
        sizes = [features, classes] if name == "sgc" else [features, *[hidden] * (layers - 1), classes]
        self.weights = nn.ParameterList(torch.empty(fan_in, fan_out) for fan_in, fan_out in pairwise(sizes))
        self.biases = nn.ParameterList(torch.empty(fan_out) for fan_out in sizes[1:])
        for weight, bias in zip(self.weights, self.biases):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def layers(self, x: Tensor, matrix: Tensor | None) -> list[Tensor]:
        """What every layer makes of features [N, F], before the relu: [N, hidden] ..., the logits [N, C]."""
        found: list[Tensor] = []
        for weight, bias in zip(self.weights, self.biases):
            if found:
                x = dropout(found[-1].relu(), self.dropout, self.training)
            found.append(propagate(matrix, product(x, weight), self.hops) + bias)
        return found

    def embeddings(self, x: Tensor, matrix: Tensor | None) -> list[Tensor]:
        """What the nodes are like before the logits: a GCN's hidden layers, an SGC's gathered features, hop by hop."""
        if self.hops > 1 or len(self.weights) == 1:
            x = x.to_dense() if x.is_sparse else x
            return [propagate(matrix, x, hop) for hop in range(1, self.hops + 1)]
        return [layer.relu() for layer in self.layers(x, matrix)[:-1]]

    def forward(self, x: Tensor, matrix: Tensor | None = None) -> Tensor:
        """Features [N, F], which may be sparse, and A_n [N, N] to logits [N, C]."""
        return self.layers(x, matrix)[-1]


def _edges(graph: Graph) -> tuple[Tensor, Tensor]:
    edges = graph["edges"]
    weight = graph.get("weight", torch.ones(len(edges), device=edges.device))
    proper = edges[:, 0] != edges[:, 1]
    return edges[proper], weight[proper]
