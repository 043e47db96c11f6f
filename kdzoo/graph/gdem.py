"""GDEM: a condensed graph by its eigenbasis: what the features are like along each eigenvector, whatever the spectrum.

    loss = alpha * mean_k |x_k x_k^T - x'_k x'_k^T|^2 / F^2 + beta * mean (H H'^T - I)^2 + gamma * mean (U'^T U' - I)^2
    x_k = row k of U^T X, of unit length;  H_c = mean of U (I - Lambda) U^T X over class c, of unit length
    A'_n = I - U' Lambda U'^T

U are eigenvectors of the real graph's largest component, of I - A_n: those of the smallest eigenvalues Lambda and of
some of the largest. U' and X' take turns. A'_n is taken by networks as it is, without degrees.
Source: Liu et al., arXiv 2310.09202, eq. 5 to 9; the defaults are the authors' for CiteSeer at half the labelled nodes.
X' starts, as theirs, where an MLP that has seen the labelled nodes finds the classes; U' as the basis of a graph of
random blocks. Theirs fills classes up that have no labelled node in the component, by the labels of other nodes; here
such a class is left out of the second term.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.graph.condenser import Condenser
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.matrix import matrix_of, normalise
from kdzoo.graph.reducers import Graph
from kdzoo.graph.structure import learns_edges

CARD = Card(
    title="Graph Distillation with Eigenbasis Matching",
    arxiv="2310.09202",
    year=2024,
    family="graph",
    task="graph condensation",
    teacher="the eigenbasis of the real graph",
    student="a condensed graph",
    data="a graph with some labelled nodes",
    code="https://github.com/liuyang-tian/GDEM",
    tags=("graph condensation", "spectrum"),
)

SMALL = 500  # nodes up to which all eigenvectors are computed
SHOWN = 0.05  # entries of A'_n that are drawn as edges


class GDEM(Condenser):
    """Matches eigenbases.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start: `mlp`, or as for other condensations.
        eigenvectors: How many are matched, at most as many as there are condensed nodes.
        smallest: Share of them that has the smallest eigenvalues, in (0, 1]; the others have the largest.
        alpha: Weight of the features along eigenvectors.
        beta: Weight of the classes' means.
        gamma: Weight of the orthogonality.
        turns: Iterations that learn the eigenvectors, and the ones after them that learn the features.
        lr_feat: Learning rate of the features.
        lr_eigenvectors: Learning rate of the eigenvectors.
        evaluation: How the condensed graph is judged.
    """

    basis: nn.Parameter
    eigenvalues: Tensor

    def __init__(
        self,
        rate: float = 0.5,
        init: Literal["mlp", "random", "herding", "k_center", "noise"] = "mlp",
        eigenvectors: int = 60,
        smallest: float = 0.8,
        alpha: float = 0.05,
        beta: float = 1e-5,
        gamma: float = 0.5,
        turns: tuple[int, int] = (10, 15),
        lr_feat: float = 5e-4,
        lr_eigenvectors: float = 5e-4,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(rate, "noise" if init == "mlp" else init, lr_feat, evaluation)
        if eigenvectors < 1 or not 0 < smallest <= 1 or min(turns) < 0 or sum(turns) < 1:
            raise UserError(
                f"GDEM: eigenvectors={eigenvectors} must be 1 or more, smallest={smallest} in (0, 1], and "
                f"turns={list(turns)} 0 or more, one of them above 0."
            )
        self.by_mlp, self.count, self.smallest = init == "mlp", eigenvectors, smallest
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.turns, self.lr_eigenvectors = turns, lr_eigenvectors

    def build(self, spec: dict[str, Any]) -> None:
        """Make the condensed nodes and their eigenvectors."""
        super().build(spec)
        size = 0
        if len(self.x):
            component = largest_component(scipy_matrix(self.training_graph()))
            size = min(self.count, len(self.x), len(component))
        self.basis = nn.Parameter(torch.zeros(len(self.x), size))
        self.register_buffer("eigenvalues", torch.zeros(size))

    def configure_optimizers(self) -> Any:
        """Adam on features and eigenvectors: what has no gradient in an iteration is left alone."""
        groups = [{"params": [self.x], "lr": self.lr_feat}, {"params": [self.basis], "lr": self.lr_eigenvectors}]
        return torch.optim.Adam(groups)

    def study(self) -> None:
        """Put down what is to be matched: `along` [k, F], `means` [classes, F] and the `classes` that have any."""
        matrix = scipy_matrix(self.real)
        nodes = largest_component(matrix)
        values, vectors = eigenbasis(matrix[nodes][:, nodes], len(self.eigenvalues), self.smallest)
        self.eigenvalues.copy_(torch.from_numpy(values))
        basis = torch.from_numpy(vectors).to(self.real["x"])
        rows = torch.from_numpy(nodes).to(self.device)
        x, label = self.real["x"][rows], self.real["label"][rows]
        self.along = normalize(basis.T @ x, dim=1)
        self.classes = label[label >= 0].unique()
        self.means = class_directions(basis, self.eigenvalues, x, label, self.classes)

    def start(self) -> None:
        """Fill the features and the eigenvectors."""
        known = self.real["label"] >= 0
        if self.by_mlp:
            self.x.copy_(features_by_mlp(self.real["x"][known], self.real["label"][known], self.labels))
        else:
            super().start()
        self.basis.copy_(block_basis(self.labels.cpu(), self.basis.shape[1]))

    def distil_step(self) -> dict[str, Tensor]:
        """Leave the gradient of features or eigenvectors, and return `eigenbasis`, `classes` and `orthogonal`."""
        turn = learns_edges(self.trainer.global_step, *self.turns)
        with torch.enable_grad():
            along = normalize(self.basis.T @ self.x, dim=1)
            means = class_directions(self.basis, self.eigenvalues, self.x, self.labels, self.classes)
            one = torch.eye(len(self.classes), device=self.x.device)
            terms = {
                "eigenbasis": self.alpha * outer_distance(self.along, along),
                "classes": self.beta * (self.means @ means.T - one).square().mean(),
                "orthogonal": self.gamma * orthogonality(self.basis),
            }
            self.backward_to(torch.stack(list(terms.values())).sum(), [self.basis if turn else self.x])
        return terms

    def final_graph(self) -> Graph:
        """The condensed graph with its normalised adjacency; the edges are there to be seen."""
        graph = super().final_graph()
        with torch.no_grad():
            basis = self.basis.detach()
            matrix = torch.eye(len(basis), device=basis.device) - (basis * self.eigenvalues) @ basis.T
        seen = matrix.clone().fill_diagonal_(0) > SHOWN
        return {**graph, "edges": seen.nonzero(), "weight": matrix[seen], "matrix": matrix}


def scipy_matrix(graph: Graph) -> csr_matrix:
    """A_n of a graph."""
    matrix = matrix_of(graph)
    if matrix is None:
        return csr_matrix(np.eye(len(graph["x"])))
    if not matrix.is_sparse:
        return csr_matrix(matrix.cpu().numpy())
    (rows, columns), values = matrix.indices().cpu().numpy(), matrix.values().cpu().numpy()
    return csr_matrix((values, (rows, columns)), shape=tuple(matrix.shape))


def largest_component(matrix: csr_matrix) -> np.ndarray:
    """The nodes of the largest connected component, ascending."""
    _, component = connected_components(matrix, directed=False)
    return np.flatnonzero(component == np.bincount(component).argmax())


def eigenbasis(matrix: csr_matrix, count: int, smallest: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [k] and eigenvectors [N, k] of I - A_n: a share of the smallest, then the largest; both ascending."""
    low = min(count, math.ceil(count * smallest))
    if matrix.shape[0] <= max(SMALL, count + 1):
        values, vectors = np.linalg.eigh(np.eye(matrix.shape[0]) - matrix.toarray())
        chosen = [*range(low), *range(len(values) - (count - low), len(values))]
        return values[chosen].astype(np.float32), vectors[:, chosen].astype(np.float32)
    ones = np.ones(matrix.shape[0])  # where the solver starts, so that it ends the same
    parts = [eigsh(matrix.astype(np.float64), low, which="LA", v0=ones)]
    parts += [eigsh(matrix.astype(np.float64), count - low, which="SA", v0=ones)] if count > low else []
    ordered = [(1 - values[::-1], vectors[:, ::-1]) for values, vectors in parts]
    values, vectors = (np.concatenate(each, axis=-1) for each in zip(*ordered))
    return values.astype(np.float32), vectors.astype(np.float32)


def class_directions(basis: Tensor, values: Tensor, x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
    """The means of U (I - Lambda) U^T X over each of `classes`, of unit length: [classes, F]."""
    gathered = basis @ ((1 - values)[:, None] * (basis.T @ x))
    return normalize(torch.stack([gathered[label == number].mean(0) for number in classes.tolist()]), dim=1)


def outer_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a_k a_k^T - b_k b_k^T)^2 over k and both axes, of rows [k, F]; no matrix of F by F is made."""
    same = (a * a).sum(1) ** 2 + (b * b).sum(1) ** 2 - 2 * (a * b).sum(1) ** 2
    return same.mean() / a.shape[1] ** 2


def orthogonality(basis: Tensor) -> Tensor:
    """Mean of (U^T U - I)^2."""
    return (basis.T @ basis - torch.eye(basis.shape[1], device=basis.device)).square().mean()


@torch.enable_grad()
def features_by_mlp(x: Tensor, label: Tensor, wanted: Tensor) -> Tensor:
    """Features [n, F] that an MLP trained on labelled nodes [N, F] takes for the classes `wanted`, int64 [n]."""
    hidden, classes = 256, int(max(label.max(), wanted.max())) + 1
    first, last = nn.Linear(x.shape[1], hidden), nn.Linear(hidden, classes)
    for layer in (first, last):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    mlp = nn.Sequential(first, nn.ReLU(), last).to(x.device)
    adam = torch.optim.Adam(mlp.parameters(), lr=0.05, weight_decay=5e-4)
    for _ in range(100):
        adam.zero_grad()
        cross_entropy(mlp(x), label).backward()
        adam.step()
    made = nn.Parameter(nn.init.xavier_uniform_(torch.empty(len(wanted), x.shape[1], device=x.device)))
    adam = torch.optim.Adam([made], lr=0.005, weight_decay=0.05)
    for _ in range(200):
        adam.zero_grad()
        cross_entropy(mlp(made), wanted).backward()
        adam.step()
    return made.detach()


def block_basis(label: Tensor, count: int) -> Tensor:
    """The first eigenvectors [n, count] of I - A_n of a random graph whose nodes [n] prefer their own class."""
    within = 1 / len(label.unique())
    chance = torch.where(label[:, None] == label, within, within / 3)
    upper = (torch.rand(chance.shape) < chance).float().triu(1)
    laplacian = torch.eye(len(label)) - normalise(upper + upper.T)
    return torch.linalg.eigh(laplacian).eigenvectors[:, :count]
