"""The few words that kdzoo says while it works: a label, then one line."""

import logging
import warnings
from typing import Literal

from rich.console import Console

Show = Literal["all", "progress", "nothing"]

console = Console(highlight=False, soft_wrap=True)


def say(label: str, text: str) -> None:
    """Print one line, such as `teacher   ready: test accuracy 89.4 %`."""
    console.print(f"{label:<10}{text}", markup=False)


def count(number: float) -> str:
    """Write a count of parameters or bytes shortly: 14.5k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def quieten() -> None:
    """Leave out what Lightning says to its developers."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    patterns = (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*instantiate_classes.*",
        ".*litlogger.*",
        ".*LeafSpec.*",
        ".*callbacks used to create the checkpoint.*",
        ".*torch.jit.script. is deprecated.*",  # torch_geometric, when it is imported
        ".*Using ModelCheckpoint with manual optimization.*",
        ".*Checkpoint directory .* exists and is not empty.*",
    )
    for pattern in patterns:
        warnings.filterwarnings("ignore", pattern)
