"""A graph of one's own, out of an npz file."""

from pathlib import Path
from typing import Any

import numpy as np

from kdzoo.datamodules.graph_data import GraphData
from kdzoo.errors import UserError


class GraphNpz(GraphData):
    """A graph out of an npz file: `edge` [2, M], `y` [N], and features as `x` [N, F] or as a bag of words.

    A bag of words is CSR without values: `indptr` [N + 1] and `indices`, numbers of words. Rows of features are divided
    by their sum. Edges are undirected; loops and repetitions are left out.

    Args:
        path: the file.
        features, classes: F and the number of classes, if they are to be known before the file is read.
        labels_per_class, validation, inductive, split_seed, smallest_class, repeat: as for `GraphData`.
    """

    def __init__(
        self,
        path: str,
        features: int | None = None,
        classes: int | None = None,
        labels_per_class: int = 20,
        validation: int = 500,
        inductive: float = 0.0,
        split_seed: int = 0,
        smallest_class: int = 1,
        repeat: int = 50,
    ) -> None:
        super().__init__(labels_per_class, validation, inductive, split_seed, smallest_class, repeat)
        self.path, self.features, self.classes = Path(path), features, classes

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know. Reads the disk only where the arguments do not say it."""
        if self.parts or self.features is None or self.classes is None:
            return super().spec
        return self.spec_of(1, self.features, [str(number) for number in range(self.classes)])

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Read the file."""
        x, edges, label = read_npz(self.path)
        classes = int(label.max(initial=-1)) + 1
        if self.features not in (None, x.shape[1]) or self.classes not in (None, classes):
            raise UserError(
                f"'{self.path}' has {x.shape[1]} features and {classes} classes, and the arguments say "
                f"{self.features} and {self.classes}: correct or omit them."
            )
        return x, edges, label, [str(number) for number in range(classes)]


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read features float32 [N, F], edges int64 [M, 2] and labels int64 [N] of an npz file; nothing in it is run.

    Raises:
        UserError: There is no such file, it is damaged, or its arrays do not fit each other.
    """
    if not path.is_file():
        raise UserError(f"There is no graph at '{path}': give the path of an npz file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        edges, label = _whole(arrays, "edge").T, _whole(arrays, "y")
        if "x" in arrays:
            x = arrays["x"].astype(np.float32)
        else:
            pointer, words = _whole(arrays, "indptr"), _whole(arrays, "indices")
            if words.min(initial=0) < 0:
                raise ValueError(f"indices name word {words.min()}")
            x = np.zeros((len(pointer) - 1, int(words.max(initial=-1)) + 1), dtype=np.float32)
            x[np.repeat(np.arange(len(x)), np.diff(pointer)), words] = 1
        if edges.shape[1:] != (2,) or label.shape != (len(x),) or x.ndim != 2:
            raise ValueError(f"edge {edges.T.shape}, y {label.shape} and features {x.shape}")
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"'{path}' holds no graph ({reason}): it needs edge [2, M], y [N] and x [N, F].") from error
    return x / np.maximum(np.abs(x).sum(1, keepdims=True), 1e-12), edges, label


def _whole(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """An array of whole numbers as int64."""
    values = arrays[name]
    if values.dtype.kind == "f" and (values != np.floor(values)).any():  # NaN is not either
        raise ValueError(f"{name} has a number that is not whole")
    return values.astype(np.int64)
