"""Before the first step: the store of a teacher is filled by all ranks together, checked, and opened."""

import errno
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice, repeat
from typing import Any

import numpy as np
from filelock import FileLock
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdzoo.console import console, say
from kdzoo.errors import UserError
from kdzoo.files import cache_dir
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.recipe import used
from kdzoo.teachers.sparse import IDS, VALUES, top
from kdzoo.teachers.store import BLOCK, Store

# What a data module has, so that a teacher's outputs on its training part can be kept.
NEEDS = ("train_set", "views", "replay", "prepare", "fingerprint", "transform_fingerprint")
PROBED = 16  # rows that are compared with the live teacher
TOLERANCE = 0.02  # of the largest value: room for float16 and for another device, none for another teacher
Outputs = dict[str, np.ndarray]


def stored_teachers(module: LightningModule) -> list[FrozenTeacher]:
    """The teachers of a method that are to be read from a store."""
    return [each for each in module.modules() if isinstance(each, FrozenTeacher) and each.keep]


def choose_views(module: LightningModule, datamodule: Any) -> None:
    """Let the data have as many views as the stores keep.

    Raises:
        UserError: The data module cannot replay its training part, or was told another number.
    """
    for teacher in stored_teachers(module):
        assert teacher.keep is not None
        views, name = teacher.keep.views, type(datamodule).__name__
        if lacks := [need for need in NEEDS if not hasattr(datamodule, need)]:
            raise UserError(f"{name} has no {lacks[0]}, so a teacher's outputs cannot be stored: leave store out.")
        if datamodule.views not in (None, views):
            raise UserError(
                f"{name} has views={datamodule.views}, and the teacher's store keeps {views}: leave data.views out."
            )
        datamodule.views = views


class FillStores(Callback):
    """Makes the stores ready when a fit starts."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Fill, check and open the store of every teacher that has one."""
        pl_module.stored_teachers = stored_teachers(pl_module)
        for teacher in pl_module.stored_teachers:
            Filling(trainer, pl_module, teacher).run()


class Pairs:
    """The (row, view) pairs of blocks, one at a time, the last one repeated until the last batch is full.

    Args:
        blocks: (view, rows) in ascending order.
        batch_size: Size of a batch.
    """

    def __init__(self, blocks: Sequence[tuple[int, Sequence[int]]], batch_size: int) -> None:
        self.blocks = blocks
        self.count = sum(len(rows) for _, rows in blocks)  # of them that are wanted
        self.padding = -self.count % batch_size

    def __len__(self) -> int:
        return self.count + self.padding

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from ((row, view) for view, rows in self.blocks for row in rows)
        view, rows = self.blocks[-1]
        yield from repeat((rows[-1], view), self.padding)


class Filling:
    """Makes the store of one teacher ready for one fit.

    Args:
        trainer: The Trainer, about to train.
        module: The method.
        teacher: One of its teachers, with `keep`.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, teacher: FrozenTeacher) -> None:
        assert teacher.keep is not None
        self.trainer, self.module, self.teacher, self.keep = trainer, module, teacher, teacher.keep
        self.data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.rank, self.world = trainer.global_rank, trainer.world_size
        self.views = int(min(self.keep.views, epochs(trainer)))
        self.samples = len(self.data.train_set)

    def run(self) -> None:
        """Fill what is missing, check, and open.

        Raises:
            UserError: The store is damaged or stale, or there is no room for it.
        """
        if self.keep.top_k:
            self.classes = self.data.spec["classes"]
            if self.keep.top_k >= self.classes:
                raise UserError(
                    f"top_k={self.keep.top_k} leaves out none of {self.classes} classes: give less or none."
                )
        # What the teacher says now about some samples: tells the shapes, and whether a store is still of this teacher.
        rows = np.unique(np.linspace(0, self.samples - 1, min(PROBED, self.data.batch_size)).astype(int))
        live = next(self.outputs([(0, rows.tolist())]))
        identity = {
            "teacher": self.keep.digest,
            "precision": str(self.teacher.dtype or self.trainer.precision),
            "data": self.data.fingerprint(),
            "transform": self.data.transform_fingerprint(),
            "samples": self.samples,
            "outputs": list(self.keep.outputs),
            "dtype": self.keep.dtype,
        }
        if self.keep.top_k:
            identity |= {"top_k": self.keep.top_k, "classes": self.classes}
        shapes = {output: values.shape[1:] for output, values in live.items()}
        about = f"{self.keep.name} on {type(self.data).__name__}"
        store = Store(cache_dir() / "stores", identity, shapes, about)
        size = sum(store.rows(*file).size for file in store.files(self.views))
        kept = " + ".join(f"{output} {list(shape)}" for output, shape in shapes.items())
        kept = f"{self.samples:,} samples x {self.views} views x {kept}, {self.keep.dtype}"
        say("store", f"{kept}: {size / 1e6:,.1f} MB in {store.folder}")
        if not self.trainer.strategy.broadcast(store.complete(self.views)):
            self.fill(store)
        store.check(self.views, slice(self.rank, None, self.world))
        self.compare(store, rows, live)
        used(store.folder)
        self.teacher.store = store

    def fill(self, store: Store) -> None:
        """Fill the missing blocks, each by one rank, under a lock that other runs wait for."""
        strategy, missing = self.trainer.strategy, None
        with ExitStack() as stack:
            if self.rank == 0:
                try:
                    store.folder.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(store.folder.with_suffix(".lock")))
                    store.start(self.views)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EROFS):
                        raise
                    raise UserError(
                        f"The store cannot be written to {store.folder} ({error.strerror}): set KDZOO_CACHE to another "
                        "folder, or leave teacher.store out."
                    ) from error
                missing = store.missing(self.views)
                check_room(store, missing)
            missing = strategy.broadcast(missing)
            assert missing is not None
            if not store.folder.is_dir():
                raise UserError(f"Rank {self.rank} does not see {store.folder}: KDZOO_CACHE must be on a shared disk.")
            self.fill_blocks(store, missing[self.rank :: self.world])
            strategy.barrier("filled")
            if self.rank == 0:
                store.finish(self.views)
            strategy.barrier("finished")

    def fill_blocks(self, store: Store, blocks: list[tuple[int, int]]) -> None:
        """Compute and write (view, block) pairs."""
        rows = [range(number * BLOCK, min((number + 1) * BLOCK, self.samples)) for _, number in blocks]
        stream = self.outputs([(view, block) for (view, _), block in zip(blocks, rows)])
        waiting: Outputs = {output: np.empty((0, *shape), np.float32) for output, shape in store.shapes.items()}
        for (view, number), block in zip(self.progress(blocks), rows):
            while len(next(iter(waiting.values()))) < len(block):  # batches do not end where blocks do
                waiting = {output: np.concatenate([waiting[output], new]) for output, new in next(stream).items()}
            store.write(view, number, {output: values[: len(block)] for output, values in waiting.items()})
            waiting = {output: values[len(block) :] for output, values in waiting.items()}

    def outputs(self, blocks: Sequence[tuple[int, Sequence[int]]]) -> Iterator[Outputs]:
        """What the teacher says about ascending (view, rows), batch by batch, float32 [B, ...] each.

        Samples that the data module leaves out, because they are corrupt, are NaN.
        """
        size = self.data.batch_size
        # All batches are of the size of the training's, so that no kernel has a reason to round differently.
        pairs = Pairs(blocks, size)
        expected = iter(pairs)
        for number, batch in enumerate(self.data.replay(pairs) if pairs.count else ()):
            batch = self.data.prepare(move_data_to_device(batch, self.module.device), augment=True)
            with self.trainer.precision_plugin.forward_context():
                found = self.teacher.features(batch, self.keep.outputs)
            asked = np.array([view * self.samples + row for row, view in islice(expected, size)])
            place = np.searchsorted(asked, (batch["view"] * self.samples + batch["index"]).cpu().numpy())
            values = {}
            if self.keep.top_k and "logits" in found:
                found[VALUES], found[IDS] = top(found.pop("logits"), self.keep.top_k)
            for output, tensor in found.items():
                array = np.full((len(asked), *tensor.shape[1:]), np.nan, np.float32)
                array[place] = tensor.float().cpu().numpy()
                values[output] = array[: pairs.count - number * size]
            yield values

    def compare(self, store: Store, rows: np.ndarray, live: Outputs) -> None:
        """Refuse a store whose rows are not what the teacher says now."""
        for output, values in live.items():
            if output == IDS:  # two classes that are as likely may change places on another device
                continue
            stored = store.read(output, rows, np.zeros_like(rows)).astype(np.float32)
            apart = np.nanmax(np.abs(stored - values), initial=0)
            if not apart <= TOLERANCE * np.nanmax(np.abs(values), initial=0):
                raise UserError(
                    f"The store {store.folder} is not what the teacher says now ({output} differ by {apart:.3g}): "
                    f"remove it with `kdzoo cache prune {store.folder.name}`."
                )

    def progress(self, blocks: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
        """Show how far it is, on rank zero."""
        if self.rank or console.quiet:
            return blocks
        columns = (TextColumn("          "), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        return track(blocks, columns)


def track(blocks: list[tuple[int, int]], columns: tuple[ProgressColumn, ...]) -> Iterator[tuple[int, int]]:
    """Go through `blocks` under a progress bar."""
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(blocks)


def check_room(store: Store, missing: list[tuple[int, int]]) -> None:
    """Raise a UserError if the missing blocks do not fit on the disk."""
    bytes_per_row = sum(store.rows(output, 0).row_bytes for output in store.shapes)
    needed, free = len(missing) * BLOCK * bytes_per_row, shutil.disk_usage(store.folder).free
    if needed > free:
        raise UserError(
            f"The store needs {needed / 1e9:.2f} GB more in {store.folder}, and {free / 1e9:.2f} GB are free: "
            "make room, set KDZOO_CACHE to another disk, or take fewer views, fp16 or top_k."
        )


def epochs(trainer: Trainer) -> float:
    """How many epochs a fit has at most."""
    trainer.fit_loop.setup_data()
    limits = [math.inf if limit is None or limit < 0 else limit for limit in (trainer.max_epochs, trainer.max_steps)]
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return min(limits[0], math.ceil(limits[1] / per_epoch) if math.isfinite(limits[1]) else math.inf)
