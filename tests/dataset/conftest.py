"""Small data and short runs for the tests of the family."""

import pytest
import torch
from lightning import Trainer, seed_everything

from kdzoo.console import quieten
from kdzoo.datamodules.image_data import ImageData, Samples


class Dots(ImageData):
    """Three classes of noisy 8x8 images, told apart by the quarter that is bright; `counts` images of each class."""

    def __init__(self, counts=(12, 10, 8), validation=0, labelled=None) -> None:
        super().__init__(
            class_names=["left", "right", "below"],
            samples=sum(counts),
            channels=1,
            image_size=(8, 8),
            mean=[0.3],
            std=[0.25],
            batch_size=4,
            num_workers=0,
            labelled=labelled,
            unlabelled="keep",
            validation=validation,
            split_seed=0,
            flip=True,
            shift=2,
            views=None,
        )
        self.counts = counts

    def load(self) -> tuple[Samples, Samples]:
        return self._part(self.counts, 0), self._part((20, 20, 20), 1)

    def _part(self, counts, seed: int) -> Samples:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
        images = torch.randint(0, 120, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
        for number, label in enumerate(labels.tolist()):
            rows, columns = slice(4 * (label == 2), 4 * (label == 2) + 4), slice(4 * (label == 1), 4 * (label == 1) + 4)
            images[number, :, rows, columns] += 130
        order = torch.randperm(len(labels), generator=generator)
        return Samples(images[order], labels[order])


@pytest.fixture
def dots() -> type[Dots]:
    return Dots


@pytest.fixture
def fit(tmp_path):
    """Fit a method for some steps; returns its Trainer."""

    def run(method, data, steps: int = 1, seed: int = 0, **options):
        quieten()
        seed_everything(seed, verbose=False)
        trainer = Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
        )
        trainer.fit(method, datamodule=data, **options)
        return trainer

    return run
