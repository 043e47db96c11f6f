"""Provenance graphs: what processes did with files and sockets, in peace and under attack."""

import gzip
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from kdzoo.console import say
from kdzoo.datamodules.graph_data import GraphData
from kdzoo.datamodules.image_data import Batch
from kdzoo.datamodules.provenance_logs import Provenance as LogGraph
from kdzoo.datamodules.provenance_logs import read_cdm, read_strace, read_streamspot
from kdzoo.datamodules.provenance_recordings import KINDS, Recording, read_recordings
from kdzoo.datamodules.provenance_text import text_features
from kdzoo.errors import UserError

ASSET = Path(__file__).parents[1] / "assets" / "provenance.npz"
STREAMSPOT_ATTACKS = "300-399"


class Provenance(GraphData):
    """Provenance graphs whose nodes' types are the labels; attacks are in the test part alone.

    The graphs of a part are one graph, their disjoint union. Batches are those of `GraphData`, with `graph` int64 [N],
    the number of the recording that a node is of, and `attack` int64 [N]: 1 of the attack, 0 not, and -1 where only the
    whole recording is known to be an attack. Every node has its type as its label: processes, sockets, and files by
    where they are (`KINDS`). Edges are events without direction and kind, repeated ones once, loops left out; kind,
    order and names are in the features (`kdzoo.datamodules.provenance_text`). Lines that do not parse are counted and
    shown.

    What is predicted is the test part, or with files of one's own all of their graphs; `test` and `predict` do with any
    number of them, a fit needs benign ones for all parts.

    Args:
        source: `embedded`: recorded sessions (`kdzoo.assets.build_provenance`); else files at `path`: `streamspot`, one
            file of edges; `cdm`, DARPA Transparent Computing's records as JSON; `strace`, logs of
            `strace -f -y -e trace=process,file,network`. They may be packed by gzip.
        path: The file, or a folder whose files are a graph each.
        attacks: What is an attack: of StreamSpot the numbers of its graphs, `300-399,405`; else a text file of uuids,
            paths, names or process numbers, one a line: a graph that has one of them is an attack.
        features: D, size of the features.
        validation: Share of the benign recordings that are the validation part.
        test: Share of the benign recordings that are in the test part. Both choices are by a hash of the title.
        split_seed: Seed of that hash.
        repeat: Steps of an epoch: the training graph is given so many times.
    """

    def __init__(
        self,
        source: Literal["embedded", "streamspot", "cdm", "strace"] = "embedded",
        path: str | None = None,
        attacks: str | None = None,
        features: int = 64,
        validation: float = 0.15,
        test: float = 0.25,
        split_seed: int = 0,
        repeat: int = 50,
    ) -> None:
        super().__init__(1, 1, 0.0, split_seed, 1, repeat)
        if source not in ("embedded", "streamspot", "cdm", "strace") or (source == "embedded") == (path is not None):
            raise UserError(
                f"Provenance: source={source} and path={path}: give embedded without a path, or streamspot, cdm or "
                "strace with one."
            )
        if not 0 < validation < 1 or not 0 <= test < 1 or validation + test >= 1 or features < 1:
            raise UserError(
                f"Provenance: validation={validation} and test={test} must be shares that leave something for the "
                f"training, and features={features} 1 or more."
            )
        self.source, self.path, self.attacks, self.features = source, Path(path or ""), attacks, features
        self.shares = {"val": validation, "test": test}
        self.titles: list[str] = []
        self.bad = 0

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know; nothing is read for it."""
        spec = self.spec_of(1, self.features, list(KINDS))
        spec["keys"]["x"]["low"] = -1.0
        number = {"dtype": "int64", "shape": [], "low": 0}
        spec["keys"] |= {"graph": {**number, "high": None}, "attack": {**number, "high": 2}}
        return spec

    def setup(self, stage: str | None = None) -> None:
        """Load once, whatever the stage, and make the parts; a fit without one of them is an error."""
        if not self.parts:
            self._load()
        if stage == "fit" and (missing := {"train", "val", "test"} - self.parts.keys()):
            raise UserError(
                f"Provenance: of {len(self.titles)} graphs none is left for {' and '.join(sorted(missing))}: a fit "
                "takes several benign graphs; look at attacks, validation and test, or give another split_seed."
            )

    def _load(self) -> None:
        recordings = self.recordings()
        self.titles, self.class_names = [each.title for each in recordings], list(KINDS)
        self.names = [name for each in recordings for name in each.names]
        chosen: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for number, recording in enumerate(recordings):
            chosen["test" if recording.attacked else self.part_of(recording.title)].append(number)
        chosen["predict"] = chosen["test"] if self.source == "embedded" else list(range(len(recordings)))
        first = np.cumsum([0, *(len(each.types) for each in recordings)])
        for part, numbers in chosen.items():
            if numbers and part == "predict" and numbers == chosen["test"]:
                self.parts[part] = self.parts["test"]
            elif numbers:
                self.parts[part] = self._union([recordings[number] for number in numbers], numbers, first)

    def part_of(self, title: str) -> str:
        """The part that a benign recording of this title belongs to."""
        share = int.from_bytes(sha256(f"{self.split_seed} {title}".encode()).digest()[:8]) / 2**64
        return "val" if share < self.shares["val"] else "test" if share < sum(self.shares.values()) else "train"

    def _union(self, recordings: list[Recording], numbers: list[int], first: np.ndarray) -> Batch:
        sizes = [len(each.types) for each in recordings]
        begin = np.cumsum([0, *sizes])
        pairs = np.concatenate([each.events[:, :2] + start for each, start in zip(recordings, begin)])
        pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], 1), axis=0)
        rows: dict[str, np.ndarray] = {
            "x": text_features(recordings, self.features),
            "edges": np.concatenate([pairs, pairs[:, ::-1]]),
            "label": np.concatenate([each.kinds for each in recordings]),
            "index": np.concatenate([first[number] + np.arange(size) for number, size in zip(numbers, sizes)]),
            "graph": np.repeat(numbers, sizes),
            "attack": np.concatenate([each.attack for each in recordings]),
        }
        return {key: torch.from_numpy(value) for key, value in rows.items()}

    # ------------------------------------------------------------------------------------------------------- reading

    def recordings(self) -> list[Recording]:
        """Read all graphs."""
        if self.source == "embedded":
            return read_recordings(ASSET)
        if not self.path.exists():
            raise UserError(f"There is nothing at '{self.path}': give the path of {self.source} files.")
        graphs = dict(self._graphs())
        self.bad = sum(graph.bad for graph in graphs.values())
        if self.bad:
            first = next(graph.first_bad for graph in graphs.values() if graph.bad)
            say("log", f"{self.bad:,} lines do not parse and are left out, the first is: {first}")
        if not any(graph.events for graph in graphs.values()):
            raise UserError(f"'{self.path}' has no event of the format {self.source}: give such files.")
        return [
            Recording.of(title, graph, self._attack(title, graph)) for title, graph in graphs.items() if graph.events
        ]

    def _graphs(self) -> Iterator[tuple[str, LogGraph]]:
        if self.source == "streamspot":
            yield from ((str(number), graph) for number, graph in read_streamspot(_lines(self.path)).items())
            return
        read = read_cdm if self.source == "cdm" else read_strace
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        base = self.path if self.path.is_dir() else self.path.parent
        for file in files:
            if file.is_file():
                yield str(file.relative_to(base)), read(_lines(file))

    def _attack(self, title: str, graph: LogGraph) -> np.ndarray:
        attack = np.zeros(len(graph.types), dtype=np.int64)
        if self.source == "streamspot":
            attack[:] = -int(int(title) in _numbers(self.attacks or STREAMSPOT_ATTACKS))
        elif self.attacks:
            attack[graph.called(self._wanted())] = 1
        return attack

    def _wanted(self) -> set[str]:
        path = Path(str(self.attacks))
        if not path.is_file():
            raise UserError(
                f"There is no '{path}': attacks of {self.source} is a text file, one uuid, path or name a line."
            )
        return {line.strip() for line in _lines(path)} - {""}

    def describe(self) -> str:
        """Say in a few words what there is to train on."""
        self.setup()
        train = self.parts["train"]
        graphs, edges = len(train["graph"].unique()), len(train["edges"]) // 2
        bad = f"; {self.bad:,} lines did not parse" if self.bad else ""
        return f"{graphs} benign graphs of {len(train['x']):,} nodes and {edges:,} edges{bad}"

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The validation part, if there is one."""
        self.setup()
        return self._loader("val") if "val" in self.parts else []

    def predict_dataloader(self) -> DataLoader[Batch]:
        """What is to be predicted."""
        return self._loader("predict")


def _lines(path: Path) -> Iterator[str]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            yield from file
    except (OSError, EOFError) as error:
        raise UserError(f"'{path}' cannot be read ({error}): give a text file, as it is or packed by gzip.") from error


def _numbers(text: str) -> set[int]:
    """The numbers of `3-5,9`."""
    try:
        ends = [part.partition("-") for part in text.split(",")]
        return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}
    except ValueError as error:
        raise UserError(f"Provenance: attacks={text} are no numbers of graphs: give some like 300-399,405.") from error
