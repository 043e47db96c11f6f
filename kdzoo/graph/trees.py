"""Computation trees: which nodes have the same one, and the tree itself as a graph.

The L-hop computation tree of a node v has v as its root; the children of a node are all its neighbours, the one it was
reached from included. A message-passing network of L layers computes a node's embedding from this tree alone.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Adjacency:
    """Neighbours in CSR: those of node v are `other[first[v] : first[v + 1]]`, over edges of the kinds `kind`."""

    first: np.ndarray
    other: np.ndarray
    kind: np.ndarray

    @classmethod
    def of(cls, nodes: int, edges: np.ndarray, kind: np.ndarray) -> "Adjacency":
        """Of edges int64 [E, 2] (from, to): a node's neighbours are those that it gets messages from."""
        order = np.argsort(edges[:, 1], kind="stable")
        degree = np.bincount(edges[:, 1], minlength=nodes)
        return cls(np.concatenate([[0], np.cumsum(degree)]), edges[order, 0], kind[order])

    @property
    def degree(self) -> np.ndarray:
        """int64 [N]."""
        return np.diff(self.first)


def numbered(rows: np.ndarray) -> np.ndarray:
    """Equal rows [n, d] get equal numbers 0, 1, ...: int64 [n]."""
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    return np.unique(keys, return_inverse=True)[1]


def tree_classes(label: np.ndarray, adjacency: Adjacency, hops: int) -> np.ndarray:
    """Nodes get the same number if and only if their computation trees are the same, without building a tree.

    By refinement: a class of depth l is the node's label and the multiset of (kind of edge, class of depth l - 1) of
    its neighbours. That is O(hops E log E), where trees grow exponentially with the hops.

    Args:
        label: int64 [N].
        adjacency: the neighbours.
        hops: depth of the trees.

    Returns:
        int64 [N], 0 ... classes - 1.
    """
    degree, owner = adjacency.degree, np.repeat(np.arange(len(label)), adjacency.degree)
    by_degree = np.argsort(degree, kind="stable")
    groups = np.split(by_degree, np.flatnonzero(np.diff(degree[by_degree])) + 1) if len(label) else []
    found = label
    for _ in range(hops):
        pair = adjacency.kind * (found.max() + 1) + found[adjacency.other]  # one number for each neighbour
        pair = pair[np.lexsort((pair, owner))]  # ascending at each node
        refined, used = np.empty_like(label), 0
        for group in groups:  # nodes of one degree: their multisets are the rows of a matrix
            columns = adjacency.first[group][:, None] + np.arange(degree[group[0]])
            refined[group] = used + numbered(np.concatenate([label[group][:, None], pair[columns]], 1))
            used = refined[group].max() + 1
        found = refined
    return found


def unroll(node: int, adjacency: Adjacency, hops: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The computation tree of a node.

    Returns:
        Which node of the graph each node of the tree is, int64 [n], the root first; edges int64 [n - 1, 2] from child
        to parent; their kinds int64 [n - 1].
    """
    nodes, edges, kinds = [np.array([node])], [np.empty((0, 2), dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    start = 0  # where the last level begins
    for _ in range(hops):
        level = nodes[-1]
        size = adjacency.degree[level]
        offset = np.repeat(adjacency.first[level] - (np.cumsum(size) - size), size) + np.arange(size.sum())
        parent = np.repeat(start + np.arange(len(level)), size)
        start += len(level)
        nodes.append(adjacency.other[offset])
        edges.append(np.stack([start + np.arange(len(offset)), parent], 1))
        kinds.append(adjacency.kind[offset])
    return np.concatenate(nodes), np.concatenate(edges), np.concatenate(kinds)
