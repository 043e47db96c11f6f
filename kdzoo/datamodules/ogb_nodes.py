"""Graphs of the Open Graph Benchmark whose nodes are classified, out of a folder that is there."""

from pathlib import Path
from typing import Any

import numpy as np

from kdzoo.datamodules.graph_data import GraphData
from kdzoo.errors import UserError

PARTS = {"train": "train", "val": "valid", "test": "test"}


class OGBNodes(GraphData):
    """A graph such as ogbn-arxiv with its published parts, out of tables in a local folder; nothing is downloaded.

    Edges are taken both ways. Features are those of the file, each with mean 0 and deviation 1 over the training nodes.

    Args:
        root: the folder that holds `<name>/raw/edge.csv.gz`, `node-feat.csv.gz`, `node-label.csv.gz`, and
            `<name>/split/<kind>/train.csv.gz`, `valid.csv.gz`, `test.csv.gz`; a `-` of the name may be a `_` there.
        name: `ogbn-arxiv`, `ogbn-products` ...
        features, classes: sizes, if they are to be known before the files are read.
        validation: at most so many of the nodes of the validation part; None: all.
        inductive, split_seed, repeat: as for `GraphData`.
    """

    def __init__(
        self,
        root: str,
        name: str = "ogbn-arxiv",
        features: int | None = None,
        classes: int | None = None,
        validation: int | None = None,
        inductive: float = 0.0,
        split_seed: int = 0,
        repeat: int = 50,
    ) -> None:
        super().__init__(1, 1 if validation is None else validation, inductive, split_seed, 1, repeat)
        self.root, self.graph, self.features, self.classes = Path(root), name, features, classes
        self.most = validation
        self.published_parts: dict[str, np.ndarray] = {}

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know. Reads the disk only where the arguments do not say it."""
        if self.parts or self.features is None or self.classes is None:
            return super().spec
        return self.spec_of(1, self.features, [str(number) for number in range(self.classes)])

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Read the tables."""
        folder = self.root / self.graph
        folder = folder if folder.is_dir() else self.root / self.graph.replace("-", "_")
        edges = table(folder / "raw" / "edge.csv.gz", self.graph, np.int64, 2)
        x = table(folder / "raw" / "node-feat.csv.gz", self.graph, np.float32)
        label = table(folder / "raw" / "node-label.csv.gz", self.graph, np.float64, 1)[:, 0]  # empty ones are NaN
        kinds = sorted(path for path in (folder / "split").glob("*") if path.is_dir())
        if not kinds:
            raise UserError(f"There is no folder in '{folder / 'split'}': unpack {self.graph} of OGB there.")
        for part, stem in PARTS.items():
            nodes = table(kinds[0] / f"{stem}.csv.gz", self.graph, np.int64, 1)[:, 0]
            if len(nodes) and (nodes.min() < 0 or nodes.max() >= len(x)):
                raise UserError(
                    f"'{kinds[0] / stem}.csv.gz' names a node that is none of the {len(x)}: unpack it again."
                )
            self.published_parts[part] = nodes
        self.published_parts["val"] = self.published_parts["val"][: self.most]
        if len(label) != len(x):
            raise UserError(f"'{folder}' has features of {len(x)} nodes and labels of {len(label)}: unpack it again.")
        label = np.where(np.isnan(label), -1, label).astype(np.int64)
        found = {"features": x.shape[1], "classes": int(label.max()) + 1}
        for key, known in (("features", self.features), ("classes", self.classes)):
            if known not in (None, found[key]):
                raise UserError(
                    f"'{folder}' has {found[key]} {key}, and the arguments say {known}: correct or omit them."
                )
        of_train = x[self.published_parts["train"]]
        x = (x - of_train.mean(0)) / np.maximum(of_train.std(0), 1e-12)
        return x.astype(np.float32), edges, label, [str(number) for number in range(found["classes"])]

    def _split(self, label: np.ndarray) -> dict[str, np.ndarray]:
        return self.published_parts


def table(path: Path, name: str, dtype: type, columns: int | None = None) -> np.ndarray:
    """Read a table of numbers without a heading, [rows, columns]; nothing in it is run.

    Raises:
        UserError: There is no such file, or it is no such table.
    """
    if not path.is_file():
        raise UserError(f"There is no '{path}': unpack {name} of OGB there; kdzoo downloads nothing.")
    try:
        found: np.ndarray = np.loadtxt(path, dtype=dtype, delimiter=",", ndmin=2)
        if columns not in (None, found.shape[1]):
            raise ValueError(f"it has {found.shape[1]} columns in place of {columns}")
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"'{path}' holds no table of numbers ({reason}): unpack it again.") from error
    return found
