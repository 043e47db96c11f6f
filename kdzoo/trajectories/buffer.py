"""A buffer of expert trajectories: the parameters of networks while they were trained, kept on the disk.

`$KDZOO_CACHE/trajectories/<hash>/` holds a safetensors file per expert, `weights` float32 [snapshots, P], and
`buffer.json`. The hash is of everything that shaped the trajectories, so that a buffer of other settings is another
folder. Files are written whole under another name and renamed; a finished expert is never trained again. Any number of
processes fill a buffer together: each takes the next expert that nobody is at work on. Reading is memory-mapped, a
snapshot at a time, each against its checksum.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kdzoo.console import console, say
from kdzoo.errors import UserError
from kdzoo.files import whole, write_text

FACTS = "buffer.json"
FORMAT = 1  # raise it when the files change
Make = Callable[[int], Iterator[np.ndarray]]


class Buffer:
    """The trajectories of experts that were all made alike, but for their seeds.

    Args:
        root: The folder of all buffers.
        identity: All that shaped the trajectories, as plain values; the number of experts is no part of it.
        snapshots: Snapshots of each expert, the one before the first epoch included.
        parameters: Length P of a snapshot.
        about: What they are, in a few words.
    """

    def __init__(self, root: Path, identity: dict[str, Any], snapshots: int, parameters: int, about: str) -> None:
        self.identity = json.loads(json.dumps(identity, sort_keys=True))  # as it will be read back
        self.snapshots, self.parameters, self.about = snapshots, parameters, about
        digest = hashlib.sha256(json.dumps([FORMAT, self.identity], sort_keys=True).encode()).hexdigest()
        self.folder = root / digest[:16]

    @classmethod
    def at(cls, folder: Path) -> "Buffer":
        """The buffer in a folder.

        Raises:
            UserError: `buffer.json` is missing or damaged.
        """
        try:
            facts = json.loads((folder / FACTS).read_text("utf-8"))
            keys = ("identity", "snapshots", "parameters", "about")
            buffer = cls(folder.parent, **{key: facts[key] for key in keys})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The trajectories {folder} have no readable {FACTS}: remove them with {prune(folder)}."
            ) from error
        buffer.folder = folder
        return buffer

    def path(self, expert: int) -> Path:
        """The file of an expert."""
        return self.folder / f"expert_{expert:04d}.safetensors"

    def found(self) -> list[int]:
        """The experts that are there."""
        return sorted(int(path.stem.removeprefix("expert_")) for path in self.folder.glob("expert_*.safetensors"))

    def missing(self, experts: int) -> list[int]:
        """Those of the first `experts` that are not."""
        return [expert for expert in range(experts) if not self.path(expert).is_file()]

    # ----------------------------------------------------------------------------------------------------- filling

    def fill(self, experts: int, make: Make) -> None:
        """Make what is missing of the first `experts`, together with whoever else does.

        Args:
            experts: How many there are to be.
            make: The snapshots of an expert, float32 [P] each, one after the other.

        Raises:
            UserError: The folder holds trajectories of other settings, or there is no room.
        """
        self.start(experts)
        columns = (TextColumn("          expert {task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, *times, console=console, transient=True, disable=console.quiet) as progress:
            task = progress.add_task("", total=None)

            def shown(expert: int) -> Iterator[np.ndarray]:
                progress.reset(task, total=self.snapshots, description=f"{expert + 1}/{experts}")
                for snapshot in make(expert):
                    yield snapshot
                    progress.advance(task)

            # First what nobody is at work on; then, if somebody was killed at work, what is still missing.
            for timeout in (0, -1):
                for expert in self.missing(experts):
                    try:
                        with FileLock(self.path(expert).with_suffix(".lock"), timeout=timeout):
                            if not self.path(expert).is_file():
                                self.write(expert, shown(expert))
                    except Timeout:
                        continue

    def start(self, experts: int) -> None:
        """Make the folder, unless it is there and of these settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "buffer.lock"):
            if (self.folder / FACTS).is_file():
                self.check_settings()
            else:
                facts = {key: getattr(self, key) for key in ("identity", "snapshots", "parameters", "about")}
                write_text(self.folder / FACTS, json.dumps(facts, indent=1))
        missing = len(self.missing(experts))
        needed, free = missing * self.snapshots * self.parameters * 4, shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"The expert trajectories need {needed / 1e9:.2f} GB more in {self.folder}, and {free / 1e9:.2f} GB "
                "are free: make room, set KDZOO_CACHE to another disk, or take fewer experts or epochs."
            )
        size = f"{experts} x {self.snapshots} snapshots x {self.parameters:,} parameters"
        there = f"{missing} to be trained" if missing else "all there"
        say("experts", f"{size}: {size_of(experts, self):,.1f} MB in {self.folder}, {there}")

    def check_settings(self) -> None:
        """Raise a UserError if the folder is of other settings."""
        there = Buffer.at(self.folder)
        mine, others = (
            {"snapshots": each.snapshots, "parameters": each.parameters, **each.identity} for each in (self, there)
        )
        for key in sorted(mine.keys() | others.keys()):
            if mine.get(key) != others.get(key):
                raise UserError(
                    f"The trajectories {self.folder} were made with {key} = {others.get(key)}, and this run has "
                    f"{mine.get(key)}: remove them with {prune(self.folder)}."
                )

    def write(self, expert: int, snapshots: Iterator[np.ndarray]) -> None:
        """Write an expert's file, whole or not at all."""
        weights = np.stack([np.array(snapshot, np.float32) for snapshot in snapshots])  # copies: the network trains on
        if weights.shape != (self.snapshots, self.parameters):
            raise ValueError(f"expert {expert} is {weights.shape}, not {(self.snapshots, self.parameters)}")
        sums = json.dumps([zlib.crc32(row.tobytes()) for row in weights])
        with whole(self.path(expert)) as scratch:
            save_file({"weights": weights}, scratch, metadata={"crc32": sums})

    # ----------------------------------------------------------------------------------------------------- reading

    def snapshot(self, expert: int, epoch: int) -> np.ndarray:
        """The parameters of an expert after so many epochs, float32 [P].

        Raises:
            UserError: The file is missing or damaged.
        """
        return self.read(expert, [epoch])[0]

    def read(self, expert: int, epochs: list[int]) -> np.ndarray:
        """The parameters of an expert after each of `epochs`, float32 [len(epochs), P]; see `snapshot`."""
        path = self.path(expert)
        try:
            with safe_open(path, framework="np") as file:
                sums = json.loads(file.metadata()["crc32"])
                rows = file.get_slice("weights")
                if rows.get_shape() != [self.snapshots, self.parameters]:
                    raise ValueError(f"it is {rows.get_shape()}")
                found = np.stack([rows[epoch] for epoch in epochs])
            for epoch, row in zip(epochs, found):
                if zlib.crc32(row.tobytes()) != sums[epoch]:
                    raise ValueError(f"snapshot {epoch} has another checksum")
        except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
            raise UserError(
                f"The expert trajectory {path} is damaged ({error}): `kdzoo cache verify --repair` removes it, and the "
                "next run trains it again."
            ) from error
        return found

    def damaged(self, expert: int) -> str | None:
        """What is wrong with an expert's file, in a sentence; None if it is as it was written."""
        try:
            self.read(expert, list(range(self.snapshots)))
        except UserError as error:
            return str(error)
        return None


def size_of(experts: int, buffer: Buffer) -> float:
    """Megabytes of so many experts."""
    return experts * buffer.snapshots * buffer.parameters * 4 / 1e6


def prune(folder: Path) -> str:
    """The command that removes a buffer."""
    return f"`kdzoo cache prune {folder.name}`"
