"""The store on disk: what a teacher says about every view of every training sample.

A store is a folder under `$KDZOO_CACHE/stores`, named by a hash of all that decides its content (`identity`). It has
`store.json`, which says what is in it, and a file for each output and view:

    rows 0 ... N-1, little-endian | a CRC-32 for each block of BLOCK rows

A file that is being filled has the ending `.part` and is renamed when its last block is there. A block of a `.part`
counts as filled if its checksum holds, so that nothing else has to be written down: whoever goes on after a kill, or
after a damage was found, fills the blocks that are not there.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdzoo.errors import UserError
from kdzoo.files import write_text
from kdzoo.teachers.sparse import IDS

FORMAT = 1  # raise it when old stores can no longer be read
BLOCK = 1024  # rows under one checksum


@dataclass(frozen=True)
class Rows:
    """One output in one view: a file of `rows` rows of `shape`.

    Attributes:
        path: The complete file; `.part` while it is being filled.
        rows: Number of training samples.
        shape: Shape of one row.
        dtype: numpy's name of the element type.
    """

    path: Path
    rows: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def part(self) -> Path:
        """The file while it is being filled."""
        return self.path.with_suffix(".part")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def blocks(self) -> list[range]:
        """The rows of every block."""
        return [range(start, min(start + BLOCK, self.rows)) for start in range(0, self.rows, BLOCK)]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.rows * self.row_bytes + 4 * len(self.blocks)

    def start(self) -> None:
        """Make the `.part`, empty, unless one is there to go on with."""
        if not self.path.exists() and (not self.part.exists() or self.part.stat().st_size != self.size):
            with self.part.open("wb") as file:
                file.truncate(self.size)  # holes: room is taken as the blocks come

    def write(self, number: int, values: np.ndarray) -> None:
        """Write a block of the `.part`, then its checksum.

        Raises:
            OSError: The disk is full, or not writable; the error names the file.
        """
        data = np.ascontiguousarray(values, dtype=self.dtype).tobytes()
        assert len(data) == len(self.blocks[number]) * self.row_bytes
        try:
            file = os.open(self.part, os.O_WRONLY)
            try:
                _write_all(file, data, self.blocks[number].start * self.row_bytes)
                checksum = np.uint32(zlib.crc32(data)).tobytes()
                _write_all(file, checksum, self.rows * self.row_bytes + 4 * number)
            finally:
                os.close(file)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.part)) from error

    def finish(self) -> None:
        """Turn the `.part` into the complete file."""
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        self.part.replace(self.path)

    def missing(self) -> list[int]:
        """The blocks that are not filled: none of a complete file, else those whose checksum does not hold."""
        return [] if self.path.exists() else self.damaged(self.part)

    def damaged(self, path: Path | None = None) -> list[int]:
        """The blocks of the complete file (or `path`) whose checksum does not hold."""
        path = path or self.path
        if not path.exists() or path.stat().st_size != self.size:
            return list(range(len(self.blocks)))
        data = np.memmap(path, np.uint8, "r")
        checksums = data[self.rows * self.row_bytes :].view("<u4")
        ends = [(block.start * self.row_bytes, block.stop * self.row_bytes) for block in self.blocks]
        return [number for number, (a, b) in enumerate(ends) if zlib.crc32(data[a:b].data) != checksums[number]]

    def open(self) -> np.ndarray:
        """The rows [rows, *shape], mapped into memory, read-only."""
        return np.memmap(self.path, self.dtype, "r", shape=(self.rows, *self.shape))


def _write_all(file: int, data: bytes, offset: int) -> None:
    """`os.pwrite` may write less than it was given, for example just before the disk is full."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _file_name(output: str) -> str:
    return output.replace("/", "_")


class Store:
    """A store for one identity.

    Args:
        folder: Where the stores are; this one's folder is named by the identity.
        identity: All that decides the content, as JSON can write it. `samples` and `dtype` are among it, and
            `classes` where only the largest logits are kept.
        shapes: Output -> shape of a row.
        about: Whose outputs on what, for people.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], about: str = ""
    ) -> None:
        self.about = about
        self.identity = {"format": FORMAT, **identity}
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode())
        self.folder = folder / digest.hexdigest()[:16]
        self.shapes = {output: tuple(shape) for output, shape in shapes.items()}
        self._open: dict[tuple[str, int], np.ndarray] = {}

    @classmethod
    def at(cls, folder: Path) -> "Store":
        """The store in a folder.

        Raises:
            UserError: It is none, or not one of this version of kdzoo, or says something else than its name.
        """
        try:
            record = json.loads((folder / "store.json").read_text("utf-8"))
            identity = dict(record["identity"])
            version = identity.pop("format")
            store = cls(folder.parent, identity, record["shapes"], record["about"])
        except FileNotFoundError as error:
            raise UserError(f"'{folder}' is no store: it has no store.json.") from error
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"The store '{folder}' is damaged (store.json): remove the folder.") from error
        if version != FORMAT:
            raise UserError(
                f"The store '{folder}' is of format {version}, and this kdzoo has {FORMAT}: remove the folder."
            )
        if store.folder != folder:
            raise UserError(f"The store '{folder}' says that it holds something else than its name: remove the folder.")
        return store

    def rows(self, output: str, view: int) -> Rows:
        """The file of an output in a view."""
        path = self.folder / f"{_file_name(output)}-{view}.bin"
        return Rows(path, self.identity["samples"], self.shapes[output], self.dtype(output))

    def dtype(self, output: str) -> str:
        """Numpy's name of an output's element type."""
        if output == IDS:
            return "int16" if self.identity["classes"] <= 1 << 15 else "int32"
        return str(self.identity["dtype"])

    def files(self, views: int) -> list[tuple[str, int]]:
        """Every (output, view) of the first `views` views."""
        return [(output, view) for view in range(views) for output in self.shapes]

    def found(self) -> Iterator[tuple[str, int]]:
        """Every (output, view) that is there, complete or not."""
        for output in self.shapes:
            names = [path.stem.rpartition("-") for path in self.folder.iterdir() if path.suffix in (".bin", ".part")]
            for view in sorted({int(view) for name, _, view in names if name == _file_name(output)}):
                yield output, view

    def complete(self, views: int) -> bool:
        """Whether all files of the first `views` views are there."""
        there = (self.folder / "store.json").exists()
        return there and all(self.rows(*file).path.exists() for file in self.files(views))

    def start(self, views: int) -> None:
        """Make what is not there of the folder and its files, unfilled."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"identity": self.identity, "shapes": self.shapes, "about": self.about}
        if not (self.folder / "store.json").exists():
            write_text(self.folder / "store.json", json.dumps(record, indent=1))
        for file in self.files(views):
            self.rows(*file).start()

    def missing(self, views: int) -> list[tuple[int, int]]:
        """The (view, block) pairs of the first `views` views that lack an output."""
        blocks = {
            view: {n for output in self.shapes for n in self.rows(output, view).missing()} for view in range(views)
        }
        return [(view, number) for view, numbers in blocks.items() for number in sorted(numbers)]

    def write(self, view: int, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Write a block of every output that is not complete.

        Raises:
            UserError: A value does not fit into the store's dtype.
        """
        for output, block in values.items():
            with np.errstate(over="ignore", invalid="ignore"):  # NaN, for a gap, has no class
                stored = block.astype(self.dtype(output))
            if np.isinf(stored).any():
                raise UserError(f"The teacher's {output} do not fit into {self.identity['dtype']}: use store=fp32.")
            if not self.rows(output, view).path.exists():
                self.rows(output, view).write(number, stored)

    def finish(self, views: int) -> None:
        """Turn the files of the first `views` views into complete ones."""
        for file in self.files(views):
            if not self.rows(*file).path.exists():
                self.rows(*file).finish()

    def read(self, output: str, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        """The rows of an output for (index, view) pairs, int64 [B] each: [B, *shape], a copy."""
        first = int(view[0])
        if (view == first).all():  # a batch is of one epoch, and so of one view
            return self._mapped(output, first)[index]
        values = np.empty((len(index), *self.shapes[output]), self.dtype(output))
        for each in np.unique(view):
            values[view == each] = self._mapped(output, int(each))[index[view == each]]
        return values

    def _mapped(self, output: str, view: int) -> np.ndarray:
        if (output, view) not in self._open:
            self._open[output, view] = self.rows(output, view).open()
        return self._open[output, view]

    def check(self, views: int, share: slice = slice(None)) -> None:
        """Open the files of the first `views` views, and verify the checksums of a share of them.

        Raises:
            UserError: A file is damaged.
        """
        mine = self.files(views)[share]
        for file in self.files(views):
            rows = self.rows(*file)
            damaged = rows.damaged() if file in mine or rows.path.stat().st_size != rows.size else []
            if damaged:
                first = rows.blocks[damaged[0]]
                raise UserError(
                    f"The store {self.folder} is damaged ({file[0]} of view {file[1]}, rows {first.start} to "
                    f"{first.stop - 1}): `kdzoo cache verify --repair` lets the next run fill these again."
                )
            self._mapped(*file)

    def repair(self, output: str, view: int) -> None:
        """Let the next run fill the damaged blocks of a file again."""
        rows = self.rows(output, view)
        if rows.path.exists():
            rows.path.replace(rows.part)
