"""A run's folder: who is at work in it, and which one is to be continued."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kdzoo.errors import UserError
from kdzoo.ranks import rank

RUNNING = ".running"  # locked while a process is at work in the folder
RESULT = "result.json"  # written last of all: a run that has it is finished
AT_WORK = "is at work in another process"
CONFIG = "config.yaml"  # written first of all


def newest(folder: Path) -> list[Path]:
    """The runs in a folder, the newest first."""
    return sorted((path for path in folder.glob("*") if path.is_dir()), reverse=True)


def unfinished(config: str, runs: Iterable[Path]) -> Path | None:
    """The first of `runs` that has this config and no result, and that no process is at work on."""
    for run in runs:
        kept = run / CONFIG
        if (run / RESULT).exists() or not kept.is_file() or kept.read_text("utf-8") != config:
            continue
        with suppress(Timeout), nullcontext() if rank() > 0 else FileLock(run / RUNNING, timeout=0):
            return run
    return None


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Hold a run's folder.

    Raises:
        UserError: Another process holds it.
    """
    if rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / RUNNING, timeout=0):
            for leftover in (*folder.rglob("*.tmp"), *folder.glob(".export.*")):  # of a kill while they were written
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield
            (folder / RUNNING).unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f"The run {folder} {AT_WORK}: give another --run_dir.") from error
