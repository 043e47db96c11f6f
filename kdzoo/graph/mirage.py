"""Mirage: computation trees that often occur together stand for the graphs of a class; no training finds them.

    transaction of a graph = the set of its nodes' L-hop computation trees
    patterns of a class = the sets of trees that a share `support` of its graphs have, each with its frequency
    loss = CE(z(pattern), y), where z pools the roots of the pattern's trees alone

A pattern is a graph: the disjoint union of its trees, their edges from child to parent. A network of L layers gives a
root the very embedding that the node had in its graph: exactly for sums over neighbours, and for a GCN because the
nodes keep the degrees that they had there. Kinds of edges are part of a tree, and so are all features of a node.

Trees are not built to be compared: refinement finds the same classes (`kdzoo.graph.trees`), and only kept patterns are
unrolled. Trees of a single node are left out where a class has others. `sampling` says whether patterns are drawn in
proportion to their frequency, as the paper has it, or evenly, as its fast code does, where the frequencies are
overwritten. Thresholds are the paper's knob of size, chosen by hand; with `bytes`, the most frequent patterns that fit
are kept, class by class.
Source: Gupta et al., arXiv 2310.09486, sections 3.1 to 3.4.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.datamodules.graph_set_data import Graphs
from kdzoo.errors import UserError
from kdzoo.graph.graph_networks import Pool
from kdzoo.graph.itemsets import frequent_itemsets
from kdzoo.graph.small_set import DistilledGraphs, SmallSet, keep_in
from kdzoo.graph.trees import Adjacency, numbered, tree_classes, unroll
from kdzoo.optim import Optim
from kdzoo.teachers import sources

CARD = Card(
    title="Mirage: Model-Agnostic Graph Distillation for Graph Classification",
    arxiv="2310.09486",
    year=2024,
    family="graph",
    task="distillation of graph sets",
    student="any message-passing network",
    data="labelled graphs",
    code="https://github.com/frigategnn/Mirage",
    headline="4 to 5 times smaller than earlier distillations of graph sets, and found about 150 times faster",
    tags=("graph distillation", "training-free"),
)


class Mirage(DistilledGraphs):
    """Distillation of a set of graphs into frequent sets of computation trees.

    Args:
        support: Share of a class's graphs that must have a pattern, in (0, 1]; one for all classes, or a list.
        hops: Depth of the trees; None: as many as the student has layers, more are of no use to it.
        sampling: Draw patterns by `frequency`, or all alike (`uniform`).
        degrees: Tell nodes of different degrees apart: then a GCN too embeds all nodes of a class alike.
        bytes: The most bytes that the patterns may have; None: no bound.
        batch_size: Patterns of a step.
        student: `gin` or `gcn`.
        hidden: Width.
        layers: Steps of message passing.
        dropout: Probability after every step but the last, and before the last layer.
        norm: `batch_norm`, `layer_norm` or None.
        pool: `sum` or `mean`, of the roots in the training, and of all nodes afterwards.
        optim: The optimizer and its schedule.
    """

    least_per_class = 4

    def __init__(
        self,
        support: float | list[float] = 0.2,
        hops: int | None = None,
        sampling: Literal["frequency", "uniform"] = "frequency",
        degrees: bool = False,
        bytes: int | None = None,
        batch_size: int = 32,
        student: str = "gin",
        hidden: int = 128,
        layers: int = 3,
        dropout: float = 0.6,
        norm: str | None = None,
        pool: Pool = "sum",
        optim: Optim = Optim(name="adam", lr=1e-3, weight_decay=1e-2, schedule="constant"),
    ) -> None:
        super().__init__(bytes, batch_size, student, hidden, layers, dropout, norm, pool, optim)
        shares = support if isinstance(support, list) else [support]
        if not shares or not all(0 < share <= 1 for share in shares):
            raise UserError(f"Mirage: support={support} must be a share of a class's graphs, in (0, 1].")
        if sampling not in ("frequency", "uniform") or (hops is not None and hops < 1):
            raise UserError(f"Mirage: hops={hops} must be 1 or more, and sampling={sampling} frequency or uniform.")
        self.support, self.hops, self.sampling, self.degrees = support, hops or layers, sampling, degrees

    def distil(self, graphs: Graphs) -> SmallSet:
        """Classify the nodes, mine each class of graphs, unroll what is kept."""
        union = {name: tensor.numpy() for name, tensor in graphs.union().items()}
        adjacency = Adjacency.of(len(union["x"]), union["edges"], union["kind"])
        tree = classes_of(union["x"], adjacency, self.hops, self.degrees)  # [N]
        patterns = mine(tree, union["graph"], union["label"], adjacency.degree, self.supports(graphs.labels))
        return self.keep(graphs, pattern_graphs(patterns, tree, union["x"], adjacency, self.hops))

    def supports(self, label: Tensor) -> list[int]:
        """How many graphs of each class must have a pattern.

        Raises:
            UserError: There are not as many supports as classes.
        """
        classes = (self.spec or {})["classes"]
        shares = self.support if isinstance(self.support, list) else [self.support] * classes
        if len(shares) != classes:
            raise UserError(
                f"Mirage: support has {len(shares)} shares, and the data {classes} classes: give one for each."
            )
        sizes = label.bincount(minlength=classes).tolist()
        return [max(1, int(np.ceil(share * size))) for share, size in zip(shares, sizes)]

    def keep(self, graphs: Graphs, found: SmallSet) -> SmallSet:
        """Keep the most frequent patterns that fit, and weigh them.

        Raises:
            UserError: A class has none that fits.
        """
        rows = keep_in(found.bytes_each(), found.graphs.labels, self.budgets(graphs))
        label = found.graphs.labels[rows]
        for number, name in enumerate((self.spec or {})["class_names"]):
            if (graphs.labels == number).any() and not (label == number).any():
                least = int(found.bytes_each()[found.graphs.labels == number].min())
                raise UserError(
                    f"Mirage: bytes={self.bytes} hold no pattern of class '{name}': the smallest takes {least}."
                )
        at = torch.isin(torch.arange(len(found)).repeat_interleave(found.graphs.nodes), rows)
        weight = found.weight[rows] if self.sampling == "frequency" else torch.ones(len(rows))
        assert found.degree is not None
        assert found.root is not None
        return SmallSet(found.graphs.take(rows), weight, found.degree[at], found.root[at])


def classes_of(x: np.ndarray, adjacency: Adjacency, hops: int, degrees: bool) -> np.ndarray:
    """The class of every node's computation tree, int64 [N]; nodes are told apart by all their features [N, F]."""
    label = numbered(x + 0.0)  # so that there is one zero
    if degrees:
        label = numbered(np.stack([label, adjacency.degree], 1))
    return tree_classes(label, adjacency, hops)


Pattern = tuple[tuple[int, ...], int, int]  # classes of trees, frequency, label


def mine(
    tree: np.ndarray, graph: np.ndarray, label: np.ndarray, degree: np.ndarray, supports: list[int]
) -> list[Pattern]:
    """The frequent patterns of each class of graphs, the most frequent first.

    Args:
        tree: classes of the nodes' trees, int64 [N].
        graph: which graph a node is of, int64 [N].
        label: the graphs' labels, int64 [G].
        degree: the nodes' degrees, int64 [N].
        supports: how many graphs of each class must have a pattern.

    Raises:
        UserError: A class that has graphs has no pattern; the message says the largest support that would leave one.
    """
    patterns: list[Pattern] = []
    for number, least in enumerate(supports):
        if not (count := int((label == number).sum())):
            continue
        mine_of = label[graph] == number
        if (mine_of & (degree > 0)).any():
            mine_of &= degree > 0
        pairs = np.unique(np.stack([graph[mine_of], tree[mine_of]], 1), axis=0)
        largest = int(np.bincount(np.unique(pairs[:, 1], return_inverse=True)[1]).max()) if len(pairs) else 0
        if sources.untrained():  # a trial on random data, which have no tree twice
            least = min(least, max(1, largest))
        if largest < least:
            advice = f"give {largest / count:.4g} or less" if largest else "its graphs have no nodes"
            raise UserError(
                f"Mirage: no computation tree is in {least} of the {count} graphs of class {number}: {advice}."
            )
        transactions = np.split(pairs[:, 1], np.flatnonzero(np.diff(pairs[:, 0])) + 1)
        itemsets = frequent_itemsets([items.tolist() for items in transactions], least)
        patterns += [(items, frequency, number) for items, frequency in itemsets]
    return patterns


def pattern_graphs(
    patterns: list[Pattern], tree: np.ndarray, x: np.ndarray, adjacency: Adjacency, hops: int
) -> SmallSet:
    """Every pattern as a graph, its trees unrolled from the first node of their class; weights are frequencies."""
    classes, first = np.unique(tree, return_index=True)
    needed = {one for items, _, _ in patterns for one in items}
    unrolled = {one: unroll(int(first[np.searchsorted(classes, one)]), adjacency, hops) for one in needed}
    nodes, edges, kinds, roots, sizes, bonds = [], [], [], [], [], []
    for items, _, _ in patterns:
        start = 0
        for one in items:
            of, links, kind = unrolled[one]
            nodes.append(of)
            edges.append(links + start)
            kinds.append(kind)
            roots.append(np.arange(len(of)) == 0)
            start += len(of)
        sizes.append(start)
        bonds.append(sum(len(unrolled[one][2]) for one in items))
    at = torch.from_numpy(np.concatenate(nodes))
    graphs = Graphs(
        images=torch.from_numpy(x)[at],
        labels=torch.tensor([label for _, _, label in patterns]),
        edges=torch.from_numpy(np.concatenate(edges)),
        kind=torch.from_numpy(np.concatenate(kinds)),
        nodes=torch.tensor(sizes),
        bonds=torch.tensor(bonds),
    )
    frequency = torch.tensor([float(count) for _, count, _ in patterns])
    return SmallSet(graphs, frequency, torch.from_numpy(adjacency.degree)[at], torch.from_numpy(np.concatenate(roots)))
