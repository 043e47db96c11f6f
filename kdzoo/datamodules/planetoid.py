"""Cora, CiteSeer and PubMed with their published parts, out of a folder that is there."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdzoo.datamodules.graph_data import GraphData
from kdzoo.errors import UserError

CLASSES = {
    "Cora": "neural_networks rule_learning reinforcement_learning probabilistic_methods theory genetic_algorithms "
    "case_based",
    "CiteSeer": "agents ai db ir ml hci",
    "PubMed": "experimental type_1 type_2",
}
FEATURES = {"Cora": 1433, "CiteSeer": 3703, "PubMed": 500}
# The files are pickles, which could run anything: only those of github.com/kimiyoung/planetoid are opened, known by the
# names that git gives their contents.
CONTENTS = {
    "Cora": {
        "x": "c4a91d008245403e7f26aa616b437191509793c0",
        "y": "58e30ef120d3553cfaac33ff28c6b5436dbef661",
        "tx": "6e856d777401ee15dc8619db76c97d0a40ba2d60",
        "ty": "da1734ab670b5c8ecee78a9c30b35566df916f4b",
        "allx": "44d53b1fece343538e45592caac521d73c6f98d6",
        "ally": "04fbd0b083d09341fcf16b395c642329637f0542",
        "graph": "4d3bf85dfc8b1c105a2c995597a1b3eed6947925",
        "test.index": "ded8092db4cd767a367eebe09003b954a5316f24",
    },
    "CiteSeer": {
        "x": "f094104a66f2689ffbd01085fe6a856689e9db9e",
        "y": "e857ac49b611da98e101a068cf4855350274f68a",
        "tx": "b2aff18aa1fc6f4f5e8c64db7643b59b24e42584",
        "ty": "3795f79df0cd1123f4478b77c148a5fbacc4cefb",
        "allx": "592091071ac35b78599c722d0e60b1c655711728",
        "ally": "7503f81a0b6ac1cc21cb5a97073542a6b1dfe99c",
        "graph": "a01dca663d0103c130f525017a4a9c313037e286",
        "test.index": "62d9e3d5ed53c66b069125af98529d76c70d9b3e",
    },
    "PubMed": {
        "x": "16c0eca8d2b3297014ff80327416f9332eda10d7",
        "y": "e86670576c85340eeb2271b3c918bfa89322b2cf",
        "tx": "eee4f3c988fde0da87a9ec7b01ca5e7863c1b1f1",
        "ty": "225a0bb9bb6430e3925d04688daf6a0da964c07a",
        "allx": "3b86bccf08111c37c632a9dd8ab63db25ea76361",
        "ally": "4c8bcdc80882dd225fe4dd4fafd723baa616ac97",
        "graph": "76eb87e628a6b9d43fc31ea42c8c6c8f3e52b404",
        "test.index": "41f6befcb7750cc4858cb852f2b349a9598cb2f4",
    },
}


class Planetoid(GraphData):
    """A citation graph, read by torch_geometric from a local folder; nothing is downloaded.

    Rows of features are divided by their sum. The 15 nodes of CiteSeer that nothing is known of have no label.

    Args:
        root: the folder that holds `<name>/raw/ind.<name in small letters>.x` and its companions, as torch_geometric
            keeps them.
        name: which graph.
        labels_per_class: None: the published parts (20 labels per class, 500 nodes of validation, 1,000 of test); a
            number: parts by `split_seed`, the rest of the nodes being the test.
        validation: nodes of the validation part; of the published parts, the first so many.
        inductive, split_seed, repeat: as for `GraphData`.
    """

    def __init__(
        self,
        root: str,
        name: Literal["Cora", "CiteSeer", "PubMed"] = "Cora",
        labels_per_class: int | None = None,
        validation: int = 500,
        inductive: float = 0.0,
        split_seed: int = 0,
        repeat: int = 50,
    ) -> None:
        super().__init__(labels_per_class or 20, validation, inductive, split_seed, 1, repeat)
        if name not in CLASSES:
            raise UserError(f"Planetoid: there is no graph '{name}', the graphs are {', '.join(CLASSES)}.")
        self.root, self.graph, self.published = Path(root), name, labels_per_class is None
        self.published_parts: dict[str, np.ndarray] = {}

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know; the disk is not read."""
        return self.spec_of(1, FEATURES[self.graph], CLASSES[self.graph].split())

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Check the files, and read them."""
        folder = self.root / self.graph / "raw"
        stem = f"ind.{self.graph.lower()}"
        for part, digest in CONTENTS[self.graph].items():
            path = folder / f"{stem}.{part}"
            if not path.is_file():
                raise UserError(
                    f"There is no '{path}': put the files {stem}.* of github.com/kimiyoung/planetoid there; kdzoo "
                    "downloads nothing."
                )
            if git_name(path.read_bytes()) != digest:
                raise UserError(
                    f"'{path}' is not the published file, and opening a pickle may run what is in it: take that of "
                    "github.com/kimiyoung/planetoid."
                )
        try:
            from torch_geometric.io import read_planetoid_data
        except ImportError as error:
            raise UserError("The graph family needs torch_geometric: pip install 'kdzoo[graph]'.") from error
        data = read_planetoid_data(str(folder), self.graph.lower())
        x, label = data.x.numpy(), data.y.numpy().copy()
        for part in ("train", "val", "test"):
            self.published_parts[part] = np.flatnonzero(data[f"{part}_mask"].numpy())
        self.published_parts["val"] = self.published_parts["val"][: self.validation]
        edges = data.edge_index.T.numpy()
        alone = np.ones(len(x), bool)
        alone[edges.ravel()] = False
        label[alone & ~x.any(1)] = -1
        return x / np.maximum(x.sum(1, keepdims=True), 1e-12), edges, label, CLASSES[self.graph].split()

    def _split(self, label: np.ndarray) -> dict[str, np.ndarray]:
        return self.published_parts if self.published else super()._split(label)


def git_name(content: bytes) -> str:
    """The name that git gives to a file of this content, 40 hexadecimal digits."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
