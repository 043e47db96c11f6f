"""The embedded graph: which packages of Debian 12 name which."""

from pathlib import Path
from typing import Literal

import numpy as np

from kdzoo.datamodules.graph_data import GraphData
from kdzoo.datamodules.graph_npz import read_npz

SECTIONS = "science games net sound graphics web admin gnome kde math education utils text x11 video python electronics"


class DebianDependencies(GraphData):
    """Packages of Debian 12: their dependencies are the edges, their sections the classes, their words the features.

    Args:
        size: `4k`: 3,994 nodes and 16,954 edges; `14k`: 14,213 and 44,428 (`NOTICE` says whose).
        labels_per_class, validation, inductive, split_seed, smallest_class, repeat: as for `GraphData`.
    """

    def __init__(
        self,
        size: Literal["4k", "14k"] = "4k",
        labels_per_class: int = 20,
        validation: int = 500,
        inductive: float = 0.0,
        split_seed: int = 0,
        smallest_class: int = 25,
        repeat: int = 50,
    ) -> None:
        super().__init__(labels_per_class, validation, inductive, split_seed, smallest_class, repeat)
        self.size = size

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Read the embedded file."""
        path = Path(__file__).parents[1] / "assets" / f"debian_deps_{self.size}.npz"
        return *read_npz(path), SECTIONS.split()
