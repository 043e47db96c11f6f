"""A data module's parts, read whole beside the training: as they are, without augmentation."""

from collections.abc import Iterator
from typing import Any

from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor


def training_part(module: LightningModule, shared: bool = True) -> Iterator[dict[str, Tensor]]:
    """Batches of every training sample once, on the module's device.

    Args:
        module: Its Trainer has the data.
        shared: Each rank reads a part of its own; else every rank reads all.
    """
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    if not hasattr(data, "replay"):  # data without augmentation
        yield from (move_data_to_device(batch, module.device) for batch in data.train_dataloader())
        return
    rank, world = (module.trainer.global_rank, module.trainer.world_size) if shared else (0, 1)
    for batch in data.replay([(row, 0) for row in range(rank, len(data.train_set), world)]):
        yield data.prepare(move_data_to_device(batch, module.device), augment=False)


def validation_part(module: LightningModule) -> Iterator[dict[str, Tensor]]:
    """Batches of the validation part, on the module's device, shared out among the ranks; none if there is no part."""
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    for batch in data.val_dataloader():
        batch = move_data_to_device(batch, module.device)
        yield data.prepare(batch, augment=False) if hasattr(data, "prepare") else batch
