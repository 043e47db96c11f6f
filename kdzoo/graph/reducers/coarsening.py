"""Coarsening: neighbours are contracted, level by level, until every label has as many nodes as its share asks for.

    heavy edges                a matching of edges, by w_ij / max(d_i, d_j), largest first
    variation neighbourhoods   whole neighbourhoods, by how much contracting them disturbs smooth signals:
                               |B^T L_C B|_F / (|C| - 1), smallest first, B = A_C - mean(A_C)

L_C = diag(2 d - W_C 1) - W_C of a set C, and A holds smooth test signals. A contracted node has the mean of its nodes'
features, and edges weigh the sum of those between. Nodes of two labels are never contracted; nodes without a label join
any, and are left out if none is near. Where the edges give out before a label is small enough, its nodes join the
nearest of as many k-centers. Source: Loukas, arXiv 1808.10650, section 4, where signals are eigenvectors; here random
signals that a lazy walk has smoothed, whose cost is linear in the edges.
"""

from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags, identity

from kdzoo.graph.reducers import Graph, Reducer, budget, shares
from kdzoo.selection import k_center

SIGNALS, STEPS = 10, 20  # test signals, and how long they are smoothed
AT_ONCE = 200_000  # entries of the adjacency that costs are counted of in one piece


class Coarsening(Reducer):
    """Contracts sets of nodes that a subclass proposes, best first."""

    def proposals(self, adjacency: csr_matrix) -> Iterable[np.ndarray]:
        """Sets of nodes of a symmetric adjacency without loops, best first; they may overlap."""
        raise NotImplementedError

    def reduce(self, graph: Graph, rate: float) -> Graph:
        """Contract."""
        device, label = graph["x"].device, graph["label"].cpu().numpy()
        wanted = shares(graph["label"].cpu(), budget(graph, rate))
        adjacency = _adjacency(graph)
        cluster = np.arange(len(label))  # of every node
        while True:
            place = self._level(adjacency, label, dict(wanted))
            if place.max(initial=-1) + 1 == len(label):  # nothing was contracted
                break
            adjacency, label = _contract(adjacency, place), _labels(label, place)
            cluster = place[cluster]
        sums = torch.zeros(len(label), graph["x"].shape[1], device=device)
        sums.index_add_(0, torch.from_numpy(cluster).to(device), graph["x"])
        sizes = np.bincount(cluster, minlength=len(label))
        means = sums / torch.from_numpy(sizes)[:, None].to(device)
        place = _settle(means, label, wanted)
        kept = place >= 0
        adjacency, label = _contract(adjacency[kept][:, kept], place[kept]), _labels(label[kept], place[kept])
        rows = torch.from_numpy(place[kept]).to(device)
        x = torch.zeros(len(label), means.shape[1], device=device).index_add_(0, rows, sums[kept])
        counts = torch.from_numpy(np.bincount(place[kept], sizes[kept])).to(x)
        found = adjacency.tocoo()
        edges = torch.from_numpy(np.stack([found.row, found.col], 1).astype(np.int64)).to(device)
        weight = torch.from_numpy(found.data.astype(np.float32)).to(device)
        return {"x": x / counts[:, None], "edges": edges, "label": torch.from_numpy(label).to(device), "weight": weight}

    def _level(self, adjacency: csr_matrix, label: np.ndarray, wanted: dict[int, int]) -> np.ndarray:
        """Contract disjoint proposals: the new number of every node."""
        values, counts = np.unique(label, return_counts=True)
        # How many nodes of each label may still go.
        spare = {int(value): int(count) - wanted.get(int(value), 0) for value, count in zip(values, counts)}
        free, group, groups = np.ones(len(label), bool), np.full(len(label), -1), 0
        for nodes in self.proposals(adjacency):
            nodes = nodes[free[nodes]]
            if len(nodes) < 2:
                continue
            own = label[nodes]
            if (known := own[own >= 0]).size:
                lead = int(np.bincount(known).argmax())
                of_lead = nodes[own == lead][: spare[lead] + 1]
                nodes = np.concatenate([of_lead, nodes[own < 0]])
                if len(nodes) < 2:
                    continue
                spare[lead] -= len(of_lead) - 1
            elif -1 in wanted:  # no node has a label: they are all of one kind
                nodes = nodes[: spare[-1] + 1]
                if len(nodes) < 2:
                    continue
                spare[-1] -= len(nodes) - 1
            free[nodes], group[nodes], groups = False, groups, groups + 1
        group[free] = groups + np.arange(int(free.sum()))
        return group


class HeavyEdge(Coarsening):
    """Contracts a matching of heavy edges."""

    def proposals(self, adjacency: csr_matrix) -> Iterable[np.ndarray]:
        """Edges, by weight against the larger degree."""
        degree = np.asarray(adjacency.sum(1)).ravel()
        found = adjacency.tocoo()
        once = found.row < found.col
        pairs = np.stack([found.row[once], found.col[once]], 1)
        return pairs[np.argsort(-found.data[once] / degree[pairs].max(1), kind="stable")]


class VariationNeighbourhoods(Coarsening):
    """Contracts neighbourhoods that smooth signals do not tell apart."""

    def proposals(self, adjacency: csr_matrix) -> Iterable[np.ndarray]:
        """Every node with its neighbours, by `variation`; a node without one has nobody to be contracted with."""
        degree, signals = np.asarray(adjacency.sum(1)).ravel(), smooth_signals(adjacency)
        pointer, neighbours, sizes = adjacency.indptr, adjacency.indices, np.diff(adjacency.indptr)
        costs = np.full(len(sizes), np.inf)
        ends = np.flatnonzero(sizes == 1)  # with one neighbour: the formula is (d_i + d_j) |s_i - s_j|^2 / 2
        joined = neighbours[pointer[ends]]
        costs[ends] = (degree[ends] + degree[joined]) * ((signals[ends] - signals[joined]) ** 2).sum(1) / 2
        within = csr_matrix(adjacency + identity(len(sizes)))  # whose rows name the sets
        many = np.flatnonzero(sizes > 1)
        entries = np.cumsum((within != 0) @ sizes.astype(np.float64)[:, None], axis=0)[many, 0]  # that are looked at
        for part in np.split(many, np.flatnonzero(np.diff(entries // AT_ONCE)) + 1):
            costs[part] = variation(adjacency, degree, signals, within[part])
        order = np.argsort(costs, kind="stable")
        start, members = within.indptr.tolist(), within.indices
        return (members[start[node] : start[node + 1]] for node in order[: (sizes > 0).sum()].tolist())


def variation(adjacency: csr_matrix, degree: np.ndarray, signals: np.ndarray, sets: csr_matrix) -> np.ndarray:
    """What contracting each of some sets of two nodes or more costs, [S]: the formula above.

    Args:
        adjacency: [N, N], without loops.
        degree: [N].
        signals: Test signals [N, K].
        sets: [S, N], not zero at each set's nodes.
    """
    sets.sort_indices()
    sizes, nodes = np.diff(sets.indptr), sets.indices
    of = np.repeat(np.arange(len(sizes)), sizes)  # which set a member is of
    first = sets.indptr[:-1]
    centred = signals[nodes] - (np.add.reduceat(signals[nodes], first) / sizes[:, None])[of]  # [members, K]
    # The edges of all members, then those of them that stay inside.
    starts = adjacency.indptr[nodes].astype(np.int64)
    counts = adjacency.indptr[nodes + 1] - starts
    entries = np.arange(counts.sum()) + np.repeat(starts - (counts.cumsum() - counts), counts)
    row = np.repeat(np.arange(len(nodes)), counts)
    member = of * np.int64(len(degree)) + nodes  # ascending
    wanted = of[row] * np.int64(len(degree)) + adjacency.indices[entries]
    column = np.searchsorted(member, wanted).clip(max=len(member) - 1)
    inside = member[column] == wanted
    shape = (len(nodes), len(nodes))
    weights = csr_matrix((adjacency.data[entries[inside]], (row[inside], column[inside])), shape=shape)
    diagonal = 2 * degree[nodes] - np.asarray(weights.sum(1)).ravel()
    bent = diagonal[:, None] * centred - weights @ centred  # L_C B
    form = np.add.reduceat(centred[:, :, None] * bent[:, None], first)  # [S, K, K]
    return np.linalg.norm(form, axis=(1, 2)) / (sizes - 1)


def smooth_signals(adjacency: csr_matrix) -> np.ndarray:
    """Random signals after a lazy walk, centred and of unit Laplacian norm: [N, K]. Draws from torch's generator."""
    degree = np.asarray(adjacency.sum(1)).ravel()
    walk = diags(1 / np.maximum(degree, 1e-12)) @ adjacency
    signals = torch.randn(len(degree), SIGNALS, dtype=torch.double).numpy()
    for _ in range(STEPS):
        signals = 0.5 * (signals + walk @ signals)
    signals = signals - signals.mean(0)
    energy = (signals * (degree[:, None] * signals - adjacency @ signals)).sum(0)
    return signals / np.sqrt(np.maximum(energy, 1e-12))


def _adjacency(graph: Graph) -> csr_matrix:
    edges = graph["edges"].cpu().numpy()
    weight = graph["weight"].cpu().numpy().astype(np.float64) if "weight" in graph else np.ones(len(edges))
    size = len(graph["x"])
    matrix = csr_matrix((weight, (edges[:, 0], edges[:, 1])), shape=(size, size))
    return _without_loops((matrix + matrix.T) / 2)


def _without_loops(matrix: csr_matrix) -> csr_matrix:
    matrix = csr_matrix(matrix - diags(matrix.diagonal()))
    matrix.eliminate_zeros()
    return matrix


def _contract(adjacency: csr_matrix, place: np.ndarray) -> csr_matrix:
    """Sum the weights between groups; `place` has the group of every node."""
    size = int(place.max(initial=-1)) + 1
    into = csr_matrix((np.ones(len(place)), (place, np.arange(len(place)))), shape=(size, len(place)))
    return _without_loops(into @ adjacency @ into.T)


def _labels(label: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The label of every group: that of its nodes that have one."""
    found = np.full(int(place.max(initial=-1)) + 1, -1, dtype=np.int64)
    np.maximum.at(found, place, label)
    return found


def _settle(means: torch.Tensor, label: np.ndarray, wanted: dict[int, int]) -> np.ndarray:
    """Bring every label to its number of nodes: the new number of each node, -1 for what is left out."""
    place, total = np.full(len(label), -1), 0
    for value, count in wanted.items():
        nodes = np.flatnonzero(label == value)
        if count:
            own = means[torch.from_numpy(nodes).to(means.device)]
            centres = k_center(own, count).to(own.device)
            nearest = torch.cdist(own, own[centres]).argmin(1)
            nearest[centres] = torch.arange(count, device=own.device)
            place[nodes] = total + nearest.cpu().numpy()
            total += count
    return place
