"""`GraphSetData`: many small graphs, each with a label; a batch is their disjoint union."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kdzoo.datamodules.image_data import Batch, ImageData, Samples, stratified
from kdzoo.errors import UserError

NONE = torch.zeros(0, dtype=torch.int64)


@dataclass(eq=False)
class Graphs(Samples):
    """Labelled graphs, one after the other. `images` is the nodes' features, float32 [N, F].

    Attributes:
        edges: int64 [E, 2], from and to, numbers of nodes inside their graph; both directions of every edge.
        kind: int64 [E], the edges' kinds.
        nodes, bonds: int64 [G], how many rows of `images` and of `edges` each graph has.
    """

    edges: Tensor = field(default_factory=lambda: NONE.view(0, 2))
    kind: Tensor = field(default_factory=lambda: NONE)
    nodes: Tensor = field(default_factory=lambda: NONE)
    bonds: Tensor = field(default_factory=lambda: NONE)

    @property
    def x(self) -> Tensor:
        """The nodes' features, float32 [N, F]."""
        return self.images

    def take(self, rows: Any) -> Self:
        """The graphs at `rows`, int64 [n]."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        at, through = spans(self.nodes, rows), spans(self.bonds, rows)
        return replace(
            self,
            images=self.images[at],
            labels=self.labels[rows],
            edges=self.edges[through],
            kind=self.kind[through],
            nodes=self.nodes[rows],
            bonds=self.bonds[rows],
        )

    def union(self) -> Batch:
        """All graphs as one: see `GraphSetData`, without `index`."""
        first = self.nodes.cumsum(0) - self.nodes
        return {
            "x": self.images,
            "edges": self.edges + first.repeat_interleave(self.bonds)[:, None],
            "kind": self.kind,
            "graph": torch.arange(len(self)).repeat_interleave(self.nodes),
            "label": self.labels,
        }

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of (position, view) pairs."""
        rows = torch.tensor(pairs)[:, 0]
        return {**self.take(rows).union(), "index": rows + self.first}

    def feed(self, digest: Any) -> None:
        """Feed all that makes this part into a hashlib `digest`."""
        for tensor in (self.images, self.labels, self.edges, self.kind, self.nodes, self.bonds):
            digest.update(tensor.numpy())

    def bytes_each(self) -> Tensor:
        """Bytes of each graph as one would keep it, int64 [G].

        Features are float32; an edge is kept once, as two int32 and a kind of one byte; a label is one byte.
        """
        return 4 * self.images.shape[1] * self.nodes + 9 * (self.bonds // 2) + 1


def spans(sizes: Tensor, rows: Tensor) -> Tensor:
    """Where the items of the groups `rows` [n] are, if groups of these sizes [G] lie one after the other."""
    first, chosen = sizes.cumsum(0) - sizes, sizes[rows]
    start = chosen.cumsum(0) - chosen  # where a group's items go
    return torch.arange(int(chosen.sum())) + (first[rows] - start).repeat_interleave(chosen)


class GraphSetData(ImageData):
    """Labelled graphs. A subclass implements `read`.

    Batches are dicts: `x` float32 [N, F], `edges` int64 [E, 2] (from, to, rows of `x`; both directions of every edge),
    `kind` int64 [E], `graph` int64 [N] (which graph of the batch a node is of), and `label` and `index` int64 [B].
    Loops and repeated edges are left out.

    Args:
        class_names: names of the classes; empty: known once the data are loaded.
        samples: size of the training part as far as it is known before loading.
        features: F, if it is known before loading.
        kinds: how many kinds of edges there are.
        batch_size: graphs per batch and process.
        num_workers: worker processes per loader.
        test: share of the graphs that are the test part, stratified.
        validation: how many graphs of the others are held out, stratified; 0: no validation part.
        split_seed: seed of these choices; None: the run's seed, for proofs over several splits.
        count: use so many graphs only, stratified; None: all.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        samples: int,
        features: int,
        kinds: int,
        batch_size: int,
        num_workers: int,
        test: float,
        validation: int,
        split_seed: int | None,
        count: int | None,
    ) -> None:
        if not 0 < test < 1 or (count is not None and count < 2):
            raise UserError(f"{type(self).__name__}: test={test} must be in (0, 1), and count={count} 2 or more.")
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if split_seed is None else split_seed
        super().__init__(
            class_names=class_names,
            samples=samples,
            channels=1,
            image_size=(1, 1),
            mean=(),
            std=(),
            batch_size=batch_size,
            num_workers=num_workers,
            labelled=None,
            unlabelled="keep",
            validation=validation,
            split_seed=seed,
            flip=False,
            shift=0,
            views=1,
        )
        self.features, self.kinds, self.test, self.count = features, kinds, test, count

    def read(self) -> Graphs:
        """Read all graphs; may set `class_names`, `features` and `kinds`."""
        raise NotImplementedError

    def load(self) -> tuple[Graphs, Graphs]:
        """Check the graphs, and choose the test part."""
        graphs = tidy(self.read(), len(self.class_names), type(self).__name__)
        if self.count is not None:
            self._check_count("count", self.count, len(graphs))
            graphs = graphs.take(stratified(graphs.labels, self.count, 0))
        chosen = stratified(graphs.labels, round(self.test * len(graphs)), self.split_seed)
        return graphs.take(np.setdiff1d(np.arange(len(graphs)), chosen)), graphs.take(chosen)

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know. Reads the disk only where the arguments do not say it."""
        if not self.class_names or not self.features:
            self.setup()
        number = {"dtype": "int64", "shape": [], "low": 0}
        return {
            "modality": "graph",
            "classes": len(self.class_names),
            "class_names": list(self.class_names),
            "features": self.features,
            "kinds": self.kinds,
            "keys": {
                "x": {"dtype": "float32", "shape": [self.features], "low": 0.0, "high": 1.0},
                "edges": {"dtype": "int64", "shape": [2], "low": 0, "high": None},  # rows of the batch
                "kind": {**number, "high": self.kinds},
                "graph": {**number, "high": None},
                "label": {**number, "high": len(self.class_names)},
                "index": {**number, "high": self.samples},
            },
        }

    def describe(self) -> str:
        """Say in a few words what there is to train on."""
        self.setup()
        return f"{self.samples:,} graphs"

    def prepare(self, batch: Batch, augment: bool) -> Batch:
        """Leave the batch as it is."""
        return batch


def tidy(graphs: Graphs, classes: int, name: str) -> Graphs:
    """Check graphs out of a file, and leave loops and repeated edges out.

    Raises:
        UserError: A feature is not finite, an edge names a missing node, or a label is none of the classes.
    """
    graph = torch.arange(len(graphs)).repeat_interleave(graphs.nodes)
    if len(broken := graph[~torch.isfinite(graphs.x).all(1)]):
        raise UserError(f"{name}: graph {broken[0]} has a feature that is not finite: mend the file.")
    through = torch.arange(len(graphs)).repeat_interleave(graphs.bonds)
    outside = ((graphs.edges < 0) | (graphs.edges >= graphs.nodes[through][:, None])).any(1)
    if outside.any():
        number = int(through[outside][0])
        raise UserError(
            f"{name}: an edge of graph {number} names a node that is not there, its nodes are 0 to "
            f"{int(graphs.nodes[number]) - 1}: mend the file."
        )
    if len(strange := graphs.labels[(graphs.labels < 0) | (graphs.labels >= classes)]):
        raise UserError(f"{name}: label {strange[0]} is outside the {classes} classes: mend the file.")
    if missing := [label for label in range(classes) if not (graphs.labels == label).any()]:
        raise UserError(f"{name}: no graph has the label {missing[0]}: leave that class out of the file.")
    rows = torch.cat([through[:, None], graphs.edges], 1).numpy()
    _, first = np.unique(rows, axis=0, return_index=True)
    keep = torch.from_numpy(np.sort(first[rows[first, 1] != rows[first, 2]]))
    bonds = through[keep].bincount(minlength=len(graphs))
    return replace(graphs, edges=graphs.edges[keep], kind=graphs.kind[keep], bonds=bonds)
