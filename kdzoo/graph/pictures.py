"""Pictures of a condensed graph for the report: its nodes and edges, its class balance, its spectrum."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import eigsh
from torch import Tensor

from kdzoo.graph.matrix import matrix_of, propagate
from kdzoo.graph.reducers import Graph
from kdzoo.metrics.figures import BLUE, INK, ORANGE, RED, styled

LINES = 600  # edges that are drawn at most, the heaviest
EIGENVALUES = 40


def graph_figure(graph: Graph, label: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw the nodes where the first two principal components of their gathered features are, in classes' colours."""
    place = _plane(propagate(matrix_of(graph), graph["x"])).numpy()  # [n, 2]
    figure, (ax,) = styled(7.5, 5)
    edges = graph["edges"][graph["edges"][:, 0] < graph["edges"][:, 1]].numpy()
    if len(edges):
        forward = (graph["edges"][:, 0] < graph["edges"][:, 1]).numpy()
        weight = graph["weight"].numpy()[forward] if "weight" in graph else np.ones(len(edges))
        heaviest = np.argsort(-weight, kind="stable")[:LINES]
        ax.add_collection(LineCollection(list(place[edges[heaviest]]), colors=INK, alpha=0.15, linewidths=0.6))
    for number, name in enumerate(class_names):
        own = (label == number).numpy()
        if own.any():
            marker, colour = "osD^v"[number // 10 % 5], f"C{number % 10}"
            ax.scatter(place[own, 0], place[own, 1], s=22, marker=marker, color=colour, label=name, zorder=2)
    ax.legend(frameon=False, labelcolor=INK, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.set_xlabel(f"{len(label):,} nodes, {len(edges):,} edges; principal components of the gathered features")
    ax.set_xticks([])
    ax.set_yticks([])
    return figure


def balance_figure(real: Tensor, condensed: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw the share of each class among the labelled nodes of both graphs.

    Args:
        real: int64 labels; -1 counts for nothing.
        condensed: As many or fewer.
        class_names: A name per class.
    """
    places = np.arange(len(class_names))
    figure, (ax,) = styled(8, 3.2)
    for shift, labels, colour, name in ((-0.2, real, BLUE, "whole graph"), (0.2, condensed, ORANGE, "condensed")):
        counts = torch.bincount(labels[labels >= 0], minlength=len(places)).numpy()
        ax.bar(places + shift, 100 * counts / max(1, counts.sum()), width=0.4, color=colour, label=name)
    ax.set_xticks(places, class_names, rotation=45, ha="right", parse_math=False)
    ax.set_ylabel("% of the labelled nodes")
    ax.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def spectrum_figure(real: Graph, condensed: Graph) -> Figure:
    """Draw the largest eigenvalues of the normalised adjacency of both graphs, in order."""
    figure, (ax,) = styled(6, 3.2)
    for graph, colour, name in ((real, BLUE, "whole graph"), (condensed, ORANGE, "condensed")):
        ax.plot(largest_eigenvalues(graph), color=colour, marker=".", linewidth=1.2, label=name)
    ax.set_xlabel("number of the eigenvalue")
    ax.set_ylabel("eigenvalue")
    ax.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def largest_eigenvalues(graph: Graph, count: int = EIGENVALUES) -> np.ndarray:
    """The largest eigenvalues of A_n, descending, at most `count`; a directed graph is taken both ways."""
    size = len(graph["x"])
    matrix = matrix_of(graph)
    if matrix is None:
        return np.ones(min(count, size))
    if matrix.is_sparse and size > 2 * count:
        rows, columns = matrix.indices().numpy()
        held = csr_matrix((matrix.values().numpy().astype(np.float64), (rows, columns)), shape=(size, size))
        start = np.random.default_rng(0).standard_normal(size)
        return np.sort(eigsh((held + held.T) / 2, count, which="LA", v0=start, return_eigenvectors=False))[::-1]
    dense = matrix.to_dense().double()
    return np.linalg.eigvalsh(((dense + dense.T) / 2).numpy())[::-1][:count]


def _plane(x: Tensor) -> Tensor:
    """The first two principal components, [n, 2]."""
    centred = x - x.mean(0)
    if len(x) < 3 or x.shape[1] < 2:
        return torch.cat([centred, torch.zeros(len(x), 2)], 1)[:, :2]
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * values[:2]


def ranking_figure(names: Sequence[str], score: Tensor, attack: Tensor, threshold: float) -> Figure:
    """Draw what is most anomalous, first on top, by name.

    Args:
        names: Of what is ranked, in order.
        score: In [0, 1], [n].
        attack: int64 [n]: 1 of the attack, 0 not, -1 unknown.
        threshold: From where on something is anomalous; NaN: not drawn.
    """
    figure, (ax,) = styled(9, 1 + 0.24 * max(4, len(names)))
    colours = [{1: RED, 0: BLUE}.get(each, ORANGE) for each in attack.tolist()]
    ax.barh(range(len(names)), score.tolist(), color=colours, height=0.7)
    ax.set_yticks(range(len(names)), [_cut(name) for name in names], parse_math=False)
    ax.invert_yaxis()
    if np.isfinite(threshold):
        ax.axvline(threshold, color=INK, linestyle="--", linewidth=1)
    ax.set_xlabel("score; red: attack, blue: benign, orange: not known")
    ax.grid(False, axis="y")
    return figure


def scores_figure(score: Tensor, attack: Tensor, threshold: float) -> Figure:
    """Draw how the scores [N] of benign nodes and of an attack's (attack = 1) are spread, as logits."""
    logit = score.double().clamp(1e-12, 1 - 1e-12).logit()
    figure, (ax,) = styled(7, 3.2)
    bins = np.linspace(float(logit.min()), float(logit.max()) + 1e-6, 60).tolist()
    for value, colour, name in ((0, BLUE, "benign"), (1, RED, "attack")):
        own = logit[attack == value].numpy()
        if len(own):
            ax.hist(own, bins, weights=np.full(len(own), 100 / len(own)), color=colour, alpha=0.6, label=name)
    if 0 < threshold < 1:
        ax.axvline(float(np.log(threshold / (1 - threshold))), color=INK, linestyle="--", linewidth=1)
    ax.set_xlabel("log-odds of the anomaly score; dashed: the threshold")
    ax.set_ylabel("% of the nodes")
    ax.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _cut(name: str, limit: int = 60) -> str:
    """The end of a long name, which says more of a path than its start."""
    return name if len(name) <= limit else f"…{name[-limit + 1 :]}"
