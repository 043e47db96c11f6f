"""Files that are whole or not there, and where they are kept."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """The folder for what kdzoo keeps: `$KDZOO_CACHE`, or `~/.cache/kdzoo`."""
    return Path(os.environ.get("KDZOO_CACHE") or "~/.cache/kdzoo").expanduser()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; it becomes `path` at the end, or is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield scratch
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; a full disk leaves what was there before."""
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into; at the end it becomes `folder`, and an earlier one is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        work, earlier = Path(scratch) / folder.name, Path(scratch) / ".earlier"
        work.mkdir()
        yield work
        if folder.exists():
            folder.rename(earlier)
        try:
            work.rename(folder)
        except OSError:
            if earlier.exists():
                earlier.rename(folder)
            raise
