"""`Recording`: a provenance graph as it is kept and split, with what of it belongs to an attack."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from kdzoo.datamodules.provenance_logs import EVENTS, TYPES, Provenance
from kdzoo.errors import UserError

# Types of nodes as a detector knows them: files are told apart by where they are.
KINDS = ("process", "socket", "program", "library", "setting", "personal", "temporary", "system", "file")
PLACES = {
    "program": ("/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/", "/usr/local/bin/", "/usr/local/sbin/", "/opt/"),
    "library": ("/lib/", "/lib32/", "/lib64/", "/usr/"),
    "setting": ("/etc/",),
    "personal": ("/home/", "/root/"),
    "temporary": ("/tmp/", "/var/tmp/", "/dev/shm/"),
    "system": ("/var/", "/dev/", "/proc/", "/sys/", "/run/", "/srv/", "/mnt/"),
}


def kind_of(type: int, name: str) -> int:
    """The index into `KINDS` of a node: files are of the first place that their path begins with, or else `file`."""
    if TYPES[type] != "file":
        return KINDS.index(TYPES[type])
    path = f"{name}/"
    inside = (place for place, starts in PLACES.items() if path.startswith(starts))
    return KINDS.index(next(inside, "file"))


@dataclass(eq=False)
class Recording:
    """A provenance graph.

    Attributes:
        title: What it is called.
        types: int64 [N], the nodes' types, indices into `TYPES`.
        names: Of each node.
        events: int64 [M, 3]: from, to, kind (an index into `EVENTS`), in the order of the log.
        attack: int64 [N]: 1 of the attack, 0 not, -1 in an attack of which only that is known.
    """

    title: str
    types: np.ndarray
    names: list[str]
    events: np.ndarray
    attack: np.ndarray

    @classmethod
    def of(cls, title: str, graph: Provenance, attack: Sequence[int] | np.ndarray) -> Self:
        """Keep of a log's graph the nodes that have an event, and of each kind of event between two the first."""
        events = np.array(graph.events, dtype=np.int64).reshape(-1, 3)
        _, first = np.unique(events, axis=0, return_index=True)
        events = events[np.sort(first)]
        kept, ends = np.unique(events[:, :2], return_inverse=True)
        return cls(
            title,
            np.array(graph.types, dtype=np.int64)[kept],
            [graph.names[node] for node in kept],
            np.concatenate([ends.reshape(-1, 2), events[:, 2:]], 1),
            np.asarray(attack, dtype=np.int64)[kept],
        )

    @property
    def kinds(self) -> np.ndarray:
        """The nodes' kinds, indices into `KINDS`: int64 [N]."""
        return np.array([kind_of(type, name) for type, name in zip(self.types.tolist(), self.names)], dtype=np.int64)

    @property
    def attacked(self) -> bool:
        """Whether an attack is in it."""
        return bool((self.attack != 0).any())


def write_recordings(path: Path, recordings: Iterable[Recording]) -> None:
    """Write recordings of at most 65,535 nodes each as one npz file."""
    every = list(recordings)
    names = sorted({name for each in every for name in each.names})
    number = {name: place for place, name in enumerate(names)}
    events = np.concatenate([each.events for each in every])
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            titles=np.frombuffer("\n".join(each.title for each in every).encode(), dtype=np.uint8),
            names=np.frombuffer("\n".join(names).encode(), dtype=np.uint8),
            nodes=np.array([len(each.types) for each in every], dtype=np.int32),
            events=np.array([len(each.events) for each in every], dtype=np.int32),
            name=np.array([number[name] for each in every for name in each.names], dtype=np.int32),
            type=np.concatenate([each.types for each in every]).astype(np.uint8),
            attack=np.concatenate([each.attack for each in every]).astype(np.int8),
            ends=events[:, :2].astype(np.uint16),
            kind=events[:, 2].astype(np.uint8),
        )


def read_recordings(path: Path) -> list[Recording]:
    """Read what `write_recordings` wrote; nothing in it is run.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        titles, names = (bytes(arrays[key]).decode().split("\n") for key in ("titles", "names"))
        parts = [
            np.split(arrays[key].astype(np.int64), np.cumsum(arrays[size])[:-1])
            for key, size in (
                ("type", "nodes"),
                ("name", "nodes"),
                ("attack", "nodes"),
                ("ends", "events"),
                ("kind", "events"),
            )
        ]
        found = []
        for title, types, name, attack, ends, kind in zip(titles, *parts, strict=True):
            if not len(types) == len(name) == len(attack) or len(ends) != len(kind):
                raise ValueError("its arrays do not fit each other")
            outside = (ends < 0) | (ends >= len(types))
            if outside.any() or not set(kind) <= set(range(len(EVENTS))) or not set(types) <= set(range(len(TYPES))):
                raise ValueError(f"'{title}' names a node, a type or a kind of event that is not there")
            events = np.concatenate([ends, kind[:, None]], 1)
            found.append(Recording(title, types, [names[each] for each in name], events, attack))
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"'{path}' holds no provenance graphs ({type(error).__name__}: {reason}).") from error
    return found
