"""`kdzoo cache list | verify | prune`: what kdzoo keeps in `$KDZOO_CACHE`."""

import argparse
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from kdzoo.errors import UserError, near
from kdzoo.files import cache_dir
from kdzoo.teachers.store import Store
from kdzoo.trajectories.buffer import Buffer

DAY = 24 * 3600
KINDS = {"teachers": "teacher", "stores": "store", "trajectories": "experts", "mined": "mined pool"}


@dataclass(frozen=True)
class Kept:
    """A folder of the cache: a teacher, a store, expert trajectories, or what an interrupted run left."""

    kind: str
    path: Path

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.stat().st_blocks * 512 for file in self.path.rglob("*") if file.is_file())

    @property
    def days(self) -> float:
        """Days since it was used."""
        return (time.time() - self.path.stat().st_mtime) / DAY

    @property
    def about(self) -> str:
        """Say what it is."""
        if self.kind == "store":
            try:
                store = Store.at(self.path)
            except UserError as error:
                return str(error)
            views = {view for _, view in store.found() if all(store.rows(o, view).path.exists() for o in store.shapes)}
            return f"{store.about}, {len(views)} views, {store.identity['dtype']}"
        if self.kind == "experts":
            try:
                buffer = Buffer.at(self.path)
            except UserError as error:
                return str(error)
            return f"{buffer.about}, {len(buffer.found())} experts x {buffer.snapshots} snapshots"
        rows = self.path / "rows.npy"
        if rows.is_file():
            return f"{len(np.load(rows, mmap_mode='r', allow_pickle=False)):,} images are kept"
        name = self.path / "recipe.txt"
        return name.read_text("utf-8").strip() if name.is_file() else "unfinished" * (self.path.suffix != "")

    def damages(self) -> list[str]:
        """What is wrong with it, each in a sentence."""
        try:
            if self.kind == "store":
                store = Store.at(self.path)
                bad = {file: store.rows(*file).damaged() for file in store.found() if store.rows(*file).path.exists()}
                return [
                    f"{self.path}: {len(blocks)} damaged blocks in {output} of view {view}"
                    for (output, view), blocks in bad.items()
                    if blocks
                ]
            if self.kind == "experts":
                buffer = Buffer.at(self.path)
                return [damage for expert in buffer.found() if (damage := buffer.damaged(expert))]
            if self.kind == "teacher" and not self.path.suffix:
                from kdzoo.export.image import load_image_network

                load_image_network(self.path)
        except UserError as error:
            return [str(error)]
        return []

    def repair(self) -> None:
        """Let the next run make again what is damaged."""
        try:
            store = Store.at(self.path) if self.kind == "store" else None
            buffer = Buffer.at(self.path) if self.kind == "experts" else None
        except UserError:
            store = buffer = None
        if buffer is not None:
            for expert in buffer.found():
                if buffer.damaged(expert):
                    buffer.path(expert).unlink()
            return
        if store is None:
            shutil.rmtree(self.path)
            return
        for file in list(store.found()):
            if store.rows(*file).path.exists() and store.rows(*file).damaged():
                store.repair(*file)


def kept(folder: Path) -> list[Kept]:
    """Everything in the cache at `folder`, by kind and name."""
    return [
        Kept(kind, path) for name, kind in KINDS.items() for path in sorted((folder / name).glob("*")) if path.is_dir()
    ]


def main(argv: Sequence[str]) -> int:
    """Run `kdzoo cache`; 1 if `verify` found a damage that it was not to repair."""
    folder = cache_dir()
    about = f"Teachers, their stores and expert trajectories in {folder}."
    parser = argparse.ArgumentParser("kdzoo cache", description=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | verify | prune")
    commands.add_parser("list", help="what there is, how big it is, and when it was used")
    verify = commands.add_parser("verify", help="read everything and compare checksums")
    verify.add_argument("--repair", action="store_true", help="let the next run make again what is damaged")
    prune = commands.add_parser("prune", help="remove what is named, or what was not used for long")
    prune.add_argument("names", nargs="*", metavar="NAME", help="as kdzoo cache list shows them")
    prune.add_argument("--unused", type=float, metavar="DAYS", help="all that was not used for so many days; 0: all")
    options = parser.parse_args(argv)
    found = kept(folder)
    if options.command == "list":
        show(found, folder)
        return 0
    if options.command == "verify":
        return verify_all(found, options.repair)
    known = [each.path.name for each in found]
    for name in options.names:
        if name not in known:
            raise UserError(f"the cache has no {name!r}.{near(name, known)} All: kdzoo cache list")
    if not options.names and options.unused is None:
        raise UserError("kdzoo cache prune needs names, or --unused DAYS")
    old = [each for each in found if options.unused is not None and each.days >= options.unused]
    remove([each for each in found if each in old or each.path.name in options.names])
    return 0


def show(found: Sequence[Kept], folder: Path) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "MB", "unused", ""):
        table.add_column(column, justify="right" if column in ("MB", "unused") else "left")
    for each in found:
        table.add_row(each.kind, each.path.name, f"{each.size / 1e6:,.1f}", f"{each.days:.0f} days", each.about)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if found:
        console.print(table)
    console.print(f"{len(found)} kept, {sum(each.size for each in found) / 1e6:,.1f} MB in {folder}")


def verify_all(found: Sequence[Kept], repair: bool) -> int:
    """Print every damage; repair them if asked to."""
    damaged = [(each, damages) for each in found if (damages := each.damages())]
    for each, damages in damaged:
        print("\n".join(damages))
        if repair:
            each.repair()
    done = ", the next run makes it again" if repair and damaged else ""
    print(f"{len(found)} verified, {len(damaged)} damaged{done}")
    return 1 if damaged and not repair else 0


def remove(chosen: Sequence[Kept]) -> None:
    """Remove folders that no run is making now."""
    freed = 0
    for each in chosen:
        lock = each.path.with_name(each.path.name.partition(".")[0] + ".lock")
        try:
            with ExitStack() as locked:
                for held in (lock, *each.path.glob("*.lock")):
                    locked.enter_context(FileLock(held, timeout=0))
                freed += each.size
                shutil.rmtree(each.path)
        except Timeout:
            print(f"{each.path.name} is in use and stays")
            continue
        print(f"removed {each.kind} {each.path.name}")
    print(f"{freed / 1e6:,.1f} MB freed")
