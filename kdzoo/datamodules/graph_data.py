"""`GraphData`: one graph whose nodes are classified; every batch is the whole graph."""

import hashlib
import warnings
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from kdzoo.datamodules.image_data import Batch, as_it_is
from kdzoo.errors import UserError


class GraphData(LightningDataModule):
    """A graph with some labelled nodes. A subclass implements `load`.

    Batches are dicts: `x` float32 [N, F], `edges` int64 [E, 2] (from, to; both directions of every
    edge), `label` int64 [N], -1 at every node that is not of the part, and `index` int64 [N], the node's number in the
    file. An inductive training leaves the unseen nodes and their edges out; the other parts have the whole graph, and
    `unseen` bool [N] says which nodes those are.

    Args:
        labels_per_class: training labels of each class.
        validation: nodes of the validation part.
        inductive: share of the test nodes that the training does not see, in [0, 1).
        split_seed: seed of the choice of the parts.
        smallest_class: classes of fewer nodes are left out, with their nodes.
        repeat: steps of an epoch: the graph is given so many times.
    """

    def __init__(
        self,
        labels_per_class: int,
        validation: int,
        inductive: float,
        split_seed: int,
        smallest_class: int,
        repeat: int,
    ) -> None:
        super().__init__()
        if labels_per_class < 1 or validation < 0 or not 0 <= inductive < 1 or repeat < 1:
            raise UserError(
                f"{type(self).__name__}: labels_per_class={labels_per_class} and repeat={repeat} must be 1 or more, "
                f"validation={validation} 0 or more and inductive={inductive} in [0, 1)."
            )
        self.labels_per_class, self.validation, self.inductive = labels_per_class, validation, inductive
        self.split_seed, self.smallest_class, self.repeat = split_seed, smallest_class, repeat
        self.parts: dict[str, Batch] = {}

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Read the graph.

        Returns:
            Features float32 [N, F], undirected edges int64 [M, 2], labels int64 [N] (-1: none), names of the classes.
        """
        raise NotImplementedError

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know."""
        self.setup()
        nodes, features = self.parts["test"]["x"].shape
        return self.spec_of(nodes, features, self.class_names)

    def spec_of(self, nodes: int, features: int, class_names: list[str]) -> dict[str, Any]:
        """The spec of a graph of this size."""
        return {
            "modality": "node_graph",
            "classes": len(class_names),
            "class_names": class_names,
            "features": features,
            "keys": {
                "x": {"dtype": "float32", "shape": [features], "low": 0.0, "high": 1.0},
                "edges": {"dtype": "int64", "shape": [2], "low": 0, "high": None},  # rows of the batch
                "label": {"dtype": "int64", "shape": [], "low": 0, "high": len(class_names)},
                "index": {"dtype": "int64", "shape": [], "low": 0, "high": nodes},
            },
        }

    def setup(self, stage: str | None = None) -> None:
        """Load once, whatever the stage, and make the parts."""
        if self.parts:
            return
        x, edges, label, names = self.load()
        x, edges, label, index, self.class_names = self._clean(x, edges, label, names)
        chosen = self._split(label)
        whole = {"x": torch.from_numpy(x), "edges": _both_ways(edges), "index": torch.from_numpy(index)}
        unseen = np.zeros(len(x), dtype=bool)
        random = np.random.default_rng((self.split_seed, 1))
        unseen[random.permutation(chosen["test"])[: int(self.inductive * len(chosen["test"]))]] = True
        for part, nodes in chosen.items():
            known = np.full(len(x), -1, dtype=np.int64)
            known[nodes] = label[nodes]
            self.parts[part] = {**whole, "label": torch.from_numpy(known), "unseen": torch.from_numpy(unseen)}
        if unseen.any():
            self.parts["train"] = subgraph(self.parts["train"], torch.from_numpy(~unseen))

    def _clean(
        self, x: np.ndarray, edges: np.ndarray, label: np.ndarray, names: list[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Check the graph; leave small classes, loops and repeated edges out."""
        if not len(x):
            raise UserError(f"{type(self).__name__}: the graph has no node: give another file.")
        if not np.isfinite(x).all():
            node = int((~np.isfinite(x)).any(1).argmax())
            raise UserError(f"{type(self).__name__}: node {node} has a feature that is not finite: mend the file.")
        if len(strange := edges[(edges < 0) | (edges >= len(x))]):
            raise UserError(
                f"{type(self).__name__}: an edge names node {strange[0]}, but the nodes are 0 to {len(x) - 1}: mend "
                "the file."
            )
        if len(strange := label[(label < -1) | (label >= len(names))]):
            raise UserError(
                f"{type(self).__name__}: label {strange[0]} is outside the {len(names)} classes: mend the file."
            )
        sizes = np.bincount(label[label >= 0], minlength=len(names))
        kept = [number for number, size in enumerate(sizes) if size >= max(1, self.smallest_class)]
        if not kept:
            raise UserError(
                f"{type(self).__name__}: no class has smallest_class={self.smallest_class} nodes, the largest has "
                f"{sizes.max(initial=0)}: give a smaller number."
            )
        renumbered = np.full(len(names) + 1, -1)  # its last entry is that of label -1
        renumbered[kept] = np.arange(len(kept))
        stays = (label < 0) | (renumbered[label] >= 0)
        place = np.cumsum(stays) - 1
        edges = place[edges[stays[edges].all(1)]]
        edges = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], 1), axis=0)
        return x[stays], edges, renumbered[label[stays]], np.flatnonzero(stays), [names[number] for number in kept]

    def _split(self, label: np.ndarray) -> dict[str, np.ndarray]:
        shuffled = np.random.default_rng(self.split_seed).permutation(np.flatnonzero(label >= 0))
        train = []
        for number, name in enumerate(self.class_names):
            of_class = shuffled[label[shuffled] == number]
            if len(of_class) <= self.labels_per_class:
                raise UserError(
                    f"{type(self).__name__}: class '{name}' has {len(of_class)} nodes, too few for labels_per_class="
                    f"{self.labels_per_class} and a test: give fewer, or raise smallest_class."
                )
            train.append(of_class[: self.labels_per_class])
        rest = shuffled[~np.isin(shuffled, np.concatenate(train))]
        if self.validation >= len(rest):
            raise UserError(
                f"{type(self).__name__}: validation={self.validation} leaves no test of {len(rest)} nodes: give fewer."
            )
        return {"train": np.concatenate(train), "val": rest[: self.validation], "test": rest[self.validation :]}

    def describe(self) -> str:
        """Say in a few words what there is to train on."""
        self.setup()
        train = self.parts["train"]
        labels = int((train["label"] >= 0).sum())
        return f"{len(train['x']):,} nodes, {len(train['edges']) // 2:,} edges, {labels:,} labels"

    def _loader(self, part: str) -> DataLoader[Batch]:
        self.setup()
        graphs: Any = [self.parts[part]] * (self.repeat if part == "train" else 1)  # a list is data set enough
        # The graph is one and in memory: a worker would only copy it.
        warnings.filterwarnings("ignore", message="The number of training batches")
        return DataLoader(graphs, batch_size=None, collate_fn=as_it_is, generator=torch.Generator())

    def train_dataloader(self) -> DataLoader[Batch]:
        """The graph with the labels of the training part."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The graph with the labels of the validation part."""
        return self._loader("val") if self.validation else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """The graph with the labels of the test part."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The whole graph."""
        return self._loader("test")

    def resume_from(self, checkpoint: dict[str, Any]) -> None:
        """Look for nothing: every batch is the same."""
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")

    def fingerprint(self) -> str:
        """Hash of graph, labels and parts; 64 hexadecimal digits."""
        self.setup()
        digest = hashlib.sha256()
        for part in self.parts.values():
            for value in part.values():
                digest.update(value.numpy())
        return digest.hexdigest()


def subgraph(graph: Batch, stays: Tensor) -> Batch:
    """The part of a batch that has only the nodes in `stays`, bool [N], numbered anew."""
    place = stays.cumsum(0) - 1
    edges = place[graph["edges"][stays[graph["edges"]].all(1)]]
    return {**{key: value[stays] for key, value in graph.items() if key != "edges"}, "edges": edges}


def _both_ways(edges: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([edges, edges[:, ::-1]]).astype(np.int64))
