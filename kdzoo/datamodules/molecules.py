"""The embedded molecules: which of them cross the blood-brain barrier, and how well others dissolve."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kdzoo.datamodules.graph_set_data import Graphs, GraphSetData
from kdzoo.errors import UserError

SETS = {"b3db": ("stays out", "crosses"), "solubility": ("low", "medium", "high")}
# Chemical elements that occur in them: one feature each, in this order.
ELEMENTS = (3, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 35, 36, 50, 53, 54)
BONDS = (2, 3, 4, 6)  # twice the bond's order: single, aromatic, double, triple


class Molecules(GraphSetData):
    """Molecules as graphs of atoms: the element is the feature, the order of the bond the kind of the edge.

    Args:
        set: `b3db`: 7,805 molecules, 4,956 of which cross the blood-brain barrier; `solubility`: 1,282 of low, medium
            or high solubility in water (`NOTICE` says whose).
        batch_size, num_workers, test, validation, split_seed, count: as for `GraphSetData`.
    """

    def __init__(
        self,
        set: Literal["b3db", "solubility"] = "b3db",
        batch_size: int = 64,
        num_workers: int = 0,
        test: float = 0.2,
        validation: int = 0,
        split_seed: int | None = 0,
        count: int | None = None,
    ) -> None:
        if set not in SETS:
            raise UserError(f"Molecules: there is no set '{set}', the sets are {' and '.join(SETS)}.")
        super().__init__(
            class_names=SETS[set],
            samples=4,
            features=len(ELEMENTS),
            kinds=len(BONDS),
            batch_size=batch_size,
            num_workers=num_workers,
            test=test,
            validation=validation,
            split_seed=split_seed,
            count=count,
        )
        self.set = set

    def read(self) -> Graphs:
        """Read the embedded file."""
        return read_molecules(Path(__file__).parents[1] / "assets" / f"molecules_{self.set}.npz")


def read_molecules(path: Path) -> Graphs:
    """Read a file of `kdzoo.assets.build_molecules`; nothing in it is run.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name].astype(np.int64)) for name in file.files}
        element, order = (
            torch.tensor([{number: place for place, number in enumerate(known)}[one] for one in values.tolist()])
            for known, values in ((ELEMENTS, arrays["a"]), (BONDS, arrays["b"]))
        )
        edges = arrays["e"].view(-1, 2)
        if int(arrays["n"].sum()) != len(element) or int(arrays["m"].sum()) != len(edges) or len(order) != len(edges):
            raise ValueError("its sizes do not fit each other")
        return Graphs(
            images=torch.nn.functional.one_hot(element, len(ELEMENTS)).float(),
            labels=arrays["y"],
            edges=torch.stack([edges, edges.flip(1)], 1).view(-1, 2),
            kind=order.repeat_interleave(2),
            nodes=arrays["n"],
            bonds=2 * arrays["m"],
        )
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"'{path}' holds no molecules ({type(error).__name__}: {reason}).") from error
