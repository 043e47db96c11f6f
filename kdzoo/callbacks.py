"""What goes with every run: exact resume, a stop at NaN, the metrics file, the cost."""

import csv
import io
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from kdzoo.errors import UserError
from kdzoo.files import whole, write_text


class ExactResume(Callback):
    """Continues a run as if it had not stopped: random states, and the place in the epoch's order.

    The random state is restored when the first batch starts: building the data iterator draws from it.
    """

    def __init__(self) -> None:
        self.states: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the random states."""
        kind, keys, *rest = np.random.get_state()
        states = {"cpu": torch.get_rng_state(), "python": random.getstate()}
        states["numpy"] = (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest)
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        checkpoint["random_states"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell the data module where the epoch goes on."""
        self.states = checkpoint.get("random_states")
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None and trainer.training and hasattr(datamodule, "resume_from"):
            datamodule.resume_from(checkpoint)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the random states, once."""
        if self.states:
            torch.set_rng_state(self.states["cpu"])
            version, numbers, gauss = self.states["python"]
            random.setstate((version, tuple(numbers), gauss))
            kind, keys, *rest = self.states["numpy"]
            np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
            if "cuda" in self.states and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.states["cuda"])
        self.states = None


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest state in `last.ckpt`: after every epoch and, inside long ones, every few minutes.

    Args:
        folder: Where to.
        every: Minutes between checkpoints inside an epoch.
    """

    def __init__(self, folder: Path, every: float) -> None:
        folder = folder.absolute()  # Lightning removes the file of another name, and a relative one would be another
        super().__init__(folder, filename="last", enable_version_counter=False)
        self.path, self.seconds, self.written = folder / "last.ckpt", 60 * every, time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let checkpoints be written whole or not at all."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            with suppress(Exception):  # sharded strategies write by themselves, and say that they do
                trainer.strategy.checkpoint_io = WholeFile()

    def state_dict(self) -> dict[str, Any]:
        """Have none: where the file lies is no business of what is in it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have none."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, if it is time and the optimizer has just made its step: accumulated gradients are in no checkpoint.

        Not after the last of `max_steps`: a run resumed there would skip the end of its epoch, validation included.
        """
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step != trainer.max_steps
        if not stepped or not (is_logged(trainer) or self.seconds == 0):  # ranks agree on the time only now and then
            return
        if trainer.strategy.broadcast(time.monotonic() - self.written >= self.seconds):
            trainer.save_checkpoint(self.path)
            self.best_model_path, self.written = str(self.path), time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after every epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        self.written = time.monotonic()


class WholeFile(TorchCheckpointIO):
    """Checkpoints that are whole or not there.

    Lightning writes to the system's temporary folder and moves the file from there: on another disk that is a copy,
    which a kill leaves half-written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside `path`, then rename."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        with whole(Path(path)) as scratch, scratch.open("wb") as file:
            torch.save(checkpoint, file)


class StopAtNaN(Callback):
    """Stops a run whose loss is no longer finite, before a checkpoint is written.

    On a CPU every step is checked; on an accelerator, where a look at the loss waits for it, the steps since the last
    look are checked every `log_every_n_steps` and before a checkpoint.
    """

    def __init__(self) -> None:
        self.unseen: deque[tuple[int, Tensor, Tensor | None]] = deque()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; look at it if it is time."""
        loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else outputs
        if isinstance(loss, Tensor):
            self.unseen.append(
                (trainer.global_step, loss.detach(), batch.get("index") if isinstance(batch, dict) else None)
            )
        if pl_module.device.type == "cpu" or is_logged(trainer):
            self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look before it is written."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        while self.unseen:
            step, loss, index = self.unseen.popleft()
            if not torch.isfinite(loss).all():
                numbers = [] if index is None else index.tolist()
                more = f" and {len(numbers) - 16} more" if len(numbers) > 16 else ""
                samples = f" on the samples {numbers[:16]}{more}" if numbers else ""
                good = getattr(trainer.checkpoint_callback, "last_model_path", "") or getattr(
                    trainer.checkpoint_callback, "best_model_path", ""
                )
                raise UserError(
                    f"The loss became {float(loss.sum())} at step {step}{samples}: lower the learning rate or the loss "
                    f"weights; {f'the last good checkpoint is {good}' if good else 'there is no checkpoint yet'}."
                )


class MetricsFile(Callback):
    """Appends metrics to a CSV in long form: `epoch,step,name,value`.

    Terms of the training loss are written every `log_every_n_steps`, those of validation and test as they come. A
    resumed run drops what it will write again.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.step = path, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the file, or cut it where the run goes on."""
        self.step = trainer.global_step
        if not trainer.is_global_zero:
            return
        self._keep(lambda step, name: step <= trainer.global_step and not name.startswith("test/"))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop an earlier test: a run may have been killed after it."""
        if trainer.is_global_zero and self.path.is_file():
            self._keep(lambda step, name: not name.startswith("test/"))

    def _keep(self, wanted: Callable[[int, str], bool]) -> None:
        """Write the file again with the rows that are wanted, and whole."""
        rows = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 4 and row[1].isdigit()]
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["epoch", "step", "name", "value"])
        writer.writerows(row for row in rows if wanted(int(row[1]), row[2]))
        write_text(self.path, text.getvalue())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the terms of the loss, once for a step: batches that are accumulated have the number of the last."""
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        if stepped and is_logged(trainer):
            rates = {f"lr/{i}": o.param_groups[0]["lr"] for i, o in enumerate(trainer.optimizers)}
            metrics = logged(trainer, "train/")
            if terms := getattr(pl_module, "terms", None):  # only those of this step
                metrics = {name: value for name, value in metrics.items() if name in terms or name == "train/loss"}
            self._write(trainer, metrics | rates)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of the validation part."""
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._write(trainer, logged(trainer, "val/"))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of the test part, with the number of epochs that have begun.

        `current_epoch` counts those that have ended, and in a run that was killed after its last step none does.
        """
        self._write(trainer, logged(trainer, "test/"), trainer.fit_loop.epoch_progress.current.ready)

    def _write(self, trainer: Trainer, metrics: dict[str, float], epoch: int | None = None) -> None:
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch if epoch is None else epoch
        with self.path.open("a", newline="") as file:
            if file.tell() == 0:  # a run without a step
                csv.writer(file).writerow(["epoch", "step", "name", "value"])
            csv.writer(file).writerows([epoch, trainer.global_step, *item] for item in metrics.items())


def logged(trainer: Trainer, prefix: str) -> dict[str, float]:
    """The metrics whose names begin with `prefix`."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def is_logged(trainer: Trainer) -> bool:
    """Whether this step is one of every `log_every_n_steps`."""
    return trainer.global_step % max(1, trainer.log_every_n_steps) == 0  # type: ignore[attr-defined]


class Cost:
    """Measures what a piece of work costs: seconds, CPU-seconds, peak memory of its own.

    Memory is what the process itself holds (anonymous pages, on Linux), above what it held at the start; on a GPU it is
    the most that torch had allocated.
    """

    def __init__(self, every: float = 0.05) -> None:
        self.base = self.peak = own_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(every,), daemon=True)
        self._thread.start()
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def stop(self) -> dict[str, float]:
        """Return `train_seconds`, `cpu_seconds`, `peak_mb` so far and stop watching."""
        self._stop.set()
        self._thread.join()
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.peak - self.base
        return {
            "train_seconds": round(time.perf_counter() - self._wall, 3),
            "cpu_seconds": round(cpu_seconds() - self._cpu, 3),
            "peak_mb": round(peak / 2**20, 1),
        }

    def _watch(self, every: float) -> None:
        while not self._stop.wait(every):
            self.peak = max(self.peak, own_memory())


def cpu_seconds() -> float:
    """CPU-seconds of this process and of its children that have ended (data workers)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def own_memory() -> int:
    """Bytes of anonymous memory of this process; zero where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
