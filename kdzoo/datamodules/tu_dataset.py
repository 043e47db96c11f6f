"""Graph sets of the TU collection (MUTAG, NCI1, PROTEINS ...), out of a folder that is there."""

from pathlib import Path
from typing import Any

import torch

from kdzoo.datamodules.graph_set_data import Graphs, GraphSetData
from kdzoo.errors import UserError


class TUDataset(GraphSetData):
    """A set of the TU collection, read by torch_geometric from a local folder; nothing is downloaded.

    Features are those of the file (one-hot node labels, and attributes if asked for), or one constant where it has
    none; the first of the one-hot edge labels is the edge's kind.

    Args:
        root: the folder that holds `<name>/raw/<name>_A.txt` and its companions.
        name: the set's name, `MUTAG`.
        features, classes, kinds: sizes, if they are to be known before the files are read.
        attributes: use the nodes' continuous attributes too.
        batch_size, num_workers, test, validation, split_seed, count: as for `GraphSetData`.
    """

    def __init__(
        self,
        root: str,
        name: str,
        features: int | None = None,
        classes: int | None = None,
        kinds: int = 1,
        attributes: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        test: float = 0.2,
        validation: int = 0,
        split_seed: int | None = 0,
        count: int | None = None,
    ) -> None:
        super().__init__(
            class_names=[str(number) for number in range(classes or 0)],
            samples=4,
            features=features or 0,
            kinds=kinds,
            batch_size=batch_size,
            num_workers=num_workers,
            test=test,
            validation=validation,
            split_seed=split_seed,
            count=count,
        )
        self.root, self.set, self.attributes = Path(root), name, attributes

    def read(self) -> Graphs:
        """Read the text files."""
        folder = self.root / self.set / "raw"
        if not (folder / f"{self.set}_A.txt").is_file():
            raise UserError(
                f"There is no '{folder / f'{self.set}_A.txt'}': unpack {self.set} of the TU collection there."
            )
        try:
            from torch_geometric.io import read_tu_data
        except ImportError as error:
            raise UserError("The graph family needs torch_geometric: pip install 'kdzoo[graph]'.") from error
        try:
            data, slices, sizes = read_tu_data(str(folder), self.set)
        except Exception as error:  # a damaged file can fail in any way
            reason = str(error).partition("\n")[0][:160]
            raise UserError(f"'{folder}' holds no intact TU set ({type(error).__name__}: {reason}).") from error
        graphs = self._graphs(data, slices, sizes)
        found = {
            "features": graphs.x.shape[1],
            "classes": int(graphs.labels.max()) + 1,
            "kinds": int(graphs.kind.max()) + 1,
        }
        for key, known in (("features", self.features), ("classes", len(self.class_names))):
            if known not in (0, found[key]):
                raise UserError(
                    f"'{folder}' has {found[key]} {key}, and the arguments say {known}: correct or omit them."
                )
        self.features, self.kinds = found["features"], max(self.kinds, found["kinds"])
        self.class_names = self.class_names or [str(number) for number in range(found["classes"])]
        return graphs

    def _graphs(self, data: Any, slices: dict[str, torch.Tensor], sizes: dict[str, int]) -> Graphs:
        edges = data.edge_index.T.contiguous()
        attribute: Any = getattr(data, "edge_attr", None)
        nodes = slices["x"].diff() if "x" in slices else torch.tensor(data._num_nodes)
        bonds = slices["edge_index"].diff()
        x = data.x if getattr(data, "x", None) is not None else torch.ones(int(nodes.sum()), 1)
        if not self.attributes and sizes.get("num_node_attributes", 0) < x.shape[1]:
            x = x[:, sizes.get("num_node_attributes", 0) :]
        labels = 0 if attribute is None else sizes.get("num_edge_labels", 0)
        kind = attribute[:, -labels:].argmax(1) if labels else torch.zeros(len(edges), dtype=torch.int64)
        return Graphs(images=x.float(), labels=data.y.long(), edges=edges, kind=kind, nodes=nodes, bonds=bonds)
