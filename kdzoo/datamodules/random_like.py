"""Random values with the shapes and ranges of a spec: for tests of configs whose data are not at hand."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader


def random_value(
    generator: torch.Generator, batch_size: int, dtype: str, shape: list[int], low: float, high: float | None
) -> Tensor:
    """One value: floats uniform in [low, high), integers low ... high - 1; without `high`, a row of the batch."""
    kind = getattr(torch, dtype)
    high = batch_size if high is None else high
    if kind.is_floating_point:
        return (low + (high - low) * torch.rand(shape, generator=generator)).to(kind)
    return torch.randint(int(low), int(high), shape, generator=generator, dtype=kind)


class RandomLike(LightningDataModule):
    """Batches as a data module with this spec would give them, the same each time.

    Args:
        spec: a data module's spec; its `keys` say what a sample holds. `index`, if there, counts the samples,
            and a sample's only `label` goes round the classes.
        samples: size of each part.
        batch_size: samples per batch.
    """

    def __init__(self, spec: dict[str, Any], samples: int = 8, batch_size: int = 4) -> None:
        super().__init__()
        self.spec, self.samples, self.batch_size = spec, samples, batch_size

    def _loader(self, part: int) -> DataLoader[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(part)
        values: Any = [  # a list is data set enough
            {key: random_value(generator, self.batch_size, **entry) for key, entry in self.spec["keys"].items()}
            for _ in range(self.samples)
        ]
        if "index" in self.spec["keys"]:
            for number, value in enumerate(values, start=part * self.samples):
                value["index"] = torch.tensor(number)
        label = self.spec["keys"].get("label", {})
        if label.get("shape") == [] and label["dtype"] == "int64":
            for number, value in enumerate(values):
                value["label"] = torch.tensor(int(label["low"]) + number % int(label["high"] - label["low"]))
        return DataLoader(dataset=values, batch_size=self.batch_size, shuffle=False, generator=torch.Generator())

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The training part."""
        return self._loader(0)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The validation part."""
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The test part."""
        return self._loader(2)

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The test part."""
        return self._loader(2)
