"""The memory of samples, and what `ps_kd` does with it."""

import pytest
import torch
from lightning import Trainer

from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.image.crd import CRD
from kdzoo.image.memory import SampleMemory
from kdzoo.image.ps_kd import PSKD
from kdzoo.losses.logits import soft_cross_entropy
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = {"classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
    "index": {"dtype": "int64", "shape": [], "low": 0, "high": 12},
}


def trainer(**options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", **quiet, **options)


def test_the_first_epoch_is_the_label_and_then_the_last_prediction_softens_it():
    label, past = torch.tensor([2, 0, -1]), torch.tensor([[0.0] * 5, [0.2, 0.5, 0.1, 0.1, 0.1], [0.2] * 5])
    target = PSKD.target(label, past, share=0.4)
    torch.testing.assert_close(target[0], torch.tensor([0.0, 0, 1, 0, 0]))  # never seen
    torch.testing.assert_close(target[1], torch.tensor([0.6 + 0.08, 0.2, 0.04, 0.04, 0.04]))
    assert not target[2].any()


def test_two_epochs_against_the_algorithm(tmp_path):
    """The memory holds the training-mode predictions of the epoch before, and the share grows by the epoch."""
    torch.manual_seed(0)
    seen = []

    class Watched(PSKD):
        def losses(self, batch):
            before = self.memory(batch["index"])
            terms = super().losses(batch)
            seen.append((batch["label"], before, self.memory(batch["index"]), terms["ps_kd"].item()))
            return terms

    method = Watched("cnn_14k", alpha=0.8)
    trainer(max_epochs=4, enable_checkpointing=False).fit(method, datamodule=RandomLike(SPEC, 12, 12))
    for epoch, (label, before, after, loss) in enumerate(seen):
        assert before.equal(torch.zeros(12, 5) if epoch == 0 else seen[epoch - 1][2])
        # The loss is of the very predictions that are then remembered.
        share = 0.8 * (epoch + 1) / 4
        assert loss == pytest.approx(
            soft_cross_entropy(after.log(), PSKD.target(label, before, share)).item(), rel=1e-4
        )
    assert len(seen) == 4


def test_rows_are_read_and_written_by_index():
    memory = SampleMemory(SPEC, torch.zeros(1, 3, dtype=torch.float16))
    memory.write(torch.tensor([4, 1]), torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert memory(torch.tensor([[1], [4], [0]])).tolist() == [[[4, 5, 6]], [[1, 2, 3]], [[0, 0, 0]]]
    assert memory.rows.dtype == torch.float16
    with pytest.raises(UserError, match="do not number their samples"):
        SampleMemory({"keys": {}}, torch.zeros(1, 3))


def self_distilled() -> PSKD:
    return PSKD("cnn_14k")


def contrasted() -> CRD:
    return CRD("cnn_14k", Teacher(timm="cnn_14k", weights="none.safetensors"), negatives=8, width=4)


@pytest.mark.parametrize("make", [self_distilled, contrasted])
def test_a_memory_of_other_data_is_refused(make, tmp_path):
    few = {"labelled": 64, "unlabelled": "drop", "batch_size": 32}
    resumed = {"ckpt_path": tmp_path / "run.ckpt", "weights_only": True}
    with untrained_teachers():
        first = trainer(max_steps=2, enable_checkpointing=False)
        first.fit(make(), datamodule=FashionMNIST(**few))
        first.save_checkpoint(tmp_path / "run.ckpt")
        with pytest.raises(UserError, match="remembers 64 samples, and the training data have 96"):
            trainer(max_steps=4).fit(make(), datamodule=FashionMNIST(**few | {"labelled": 96}), **resumed)
        with pytest.raises(UserError, match="remembers every sample of other training data"):
            trainer(max_steps=4).fit(make(), datamodule=FashionMNIST(**few, split_seed=1), **resumed)
