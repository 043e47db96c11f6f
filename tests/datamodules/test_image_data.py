import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from kdzoo.datamodules.augment import flip_and_shift
from kdzoo.datamodules.image_data import ImageData, Samples, stratified
from kdzoo.errors import UserError


class Toy(ImageData):
    """Random 6x6 images of three unequal classes."""

    def __init__(self, train=62, test=10, **options):
        defaults = {
            "class_names": "abc",
            "samples": train,
            "channels": 1,
            "image_size": (6, 6),
            "mean": [0.5],
            "std": [0.3],
            "batch_size": 8,
            "num_workers": 0,
            "labelled": None,
            "unlabelled": "keep",
            "validation": 0,
            "split_seed": 0,
            "flip": True,
            "shift": 1,
            "views": None,
        }
        super().__init__(**{**defaults, **options})
        self.sizes = train, test

    def load(self):
        generator = torch.Generator().manual_seed(0)
        parts = []
        for size in self.sizes:
            images = torch.randint(0, 256, (size, 1, 6, 6), generator=generator, dtype=torch.uint8)
            parts.append(Samples(images, torch.tensor([0, 0, 1, 0, 2, 0]).repeat(size)[:size]))
        return parts[0], parts[1]


class Recorder(LightningModule):
    """Keeps what it is given."""

    def __init__(self, data=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.data, self.seen, self.batches = data, [], {}

    def on_load_checkpoint(self, checkpoint):
        self.data.resume_from(checkpoint)

    def training_step(self, batch):
        self.seen.append((batch["index"].tolist(), batch["view"].tolist(), batch["image"].sum().item()))
        self.batches["train"] = batch
        return self.weight**2

    def validation_step(self, batch):
        self.batches["validation"] = batch

    def test_step(self, batch):
        self.batches["test"] = batch

    def predict_step(self, batch):
        return batch["index"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveEachBatch(Callback):
    """Saves where ModelCheckpoint does."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, model, *_):
        trainer.save_checkpoint(self.folder / f"{len(model.seen)}.ckpt")


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{**quiet, "enable_checkpointing": False, **options})


def collect(loader):
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def test_stratified():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    for count in (0, 1, 7, 10, 50, 100):
        rows = stratified(labels, count, seed=3)
        assert len(set(rows.tolist())) == count
        assert sorted(rows) == rows.tolist()
        for label, share in enumerate((0.6, 0.3, 0.1)):
            assert abs((labels[rows] == label).sum() - share * count) < 1
    assert set(stratified(labels, 10, 3)) <= set(stratified(labels, 50, 3))
    assert stratified(labels, 10, 3).tolist() != stratified(labels, 10, 4).tolist()


def test_validation_and_labels_are_disjoint_and_stratified():
    data = Toy(train=120, validation=24, labelled=30)
    whole, _ = data.load()
    train, validation = collect(data.train_dataloader()), collect(data.val_dataloader())
    pixels = {image.numpy().tobytes() for image in whole.images}
    held_out = {image.numpy().tobytes() for image in validation["image"]}
    kept = {image.numpy().tobytes() for image in data.train_set.images}
    assert held_out | kept == pixels
    assert not held_out & kept
    assert validation["label"].bincount().tolist() == [16, 4, 4]
    assert len(train["label"]) == 96
    assert (train["label"] == -1).sum() == 66
    assert train["label"][train["label"] >= 0].bincount().tolist() == [20, 5, 5]
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    numbers = [collect(loader)["index"] for loader in loaders]
    assert torch.cat(numbers).sort().values.tolist() == list(range(130))
    assert numbers[0].max() == data.spec["keys"]["index"]["high"] - 1 == 95


def test_unlabelled_samples_can_be_dropped():
    data = Toy(train=120, labelled=30, unlabelled="drop")
    train = collect(data.train_dataloader())
    assert len(data.train_set) == data.spec["keys"]["index"]["high"] == 30
    assert train["label"].min() == 0


def test_split_seed_and_not_the_runs_seed_chooses(monkeypatch):
    assert Toy(validation=20).fingerprint() == Toy(validation=20, batch_size=3, flip=False).fingerprint()
    others = [{}, {"validation": 20}, {"validation": 20, "split_seed": 1}, {"labelled": 5}]
    others.append({"labelled": 5, "unlabelled": "drop"})
    assert len({Toy(**other).fingerprint() for other in others}) == len(others)
    before, order = Toy(validation=20).fingerprint(), collect(Toy().train_dataloader())["index"]
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert Toy(validation=20).fingerprint() == before
    assert not torch.equal(collect(Toy().train_dataloader())["index"], order)


def test_transform_fingerprint():
    assert Toy().transform_fingerprint() == Toy(batch_size=3, views=4, labelled=5).transform_fingerprint()
    assert len({Toy(**other).transform_fingerprint() for other in ({}, {"flip": False}, {"shift": 2})}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labelled": 63}, "labelled=63 is more than the 62"),
        ({"validation": 63}, "validation=63 is more than the 62"),
        ({"validation": 62}, "training part is empty"),
        ({"labelled": 0, "unlabelled": "drop"}, "training part is empty"),
        ({"train": 0}, "training part is empty"),
        ({"test": 0}, "test part is empty"),
        ({"labelled": -1}, "labelled=-1 is too small"),
        ({"validation": -1}, "validation=-1 is too small"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"views": 0}, "views=0 is too small"),
        ({"shift": -1}, "shift=-1 is too small"),
        ({"num_workers": -1}, "num_workers=-1 is too small"),
    ],
)
def test_impossible_arguments(options, message):
    with pytest.raises(UserError, match=message) as error:
        Toy(**options).setup()
    assert str(error.value).startswith("Toy: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "1,200 images"),
        ({"validation": 100}, "1,100 images"),
        ({"labelled": 1200}, "1,200 images"),
        ({"labelled": 30, "validation": 60}, "30 labels + 1,110 unlabelled images"),
        ({"labelled": 0}, "0 labels + 1,200 unlabelled images"),
        ({"labelled": 30, "unlabelled": "drop"}, "30 images"),
    ],
)
def test_describe(options, words):
    assert Toy(train=1200, **options).describe() == words


def test_last_batch_is_dropped_only_when_there_is_another():
    assert [len(batch["label"]) for batch in Toy(train=20).train_dataloader()] == [8, 8]
    assert [len(batch["label"]) for batch in Toy(train=5).train_dataloader()] == [5]
    assert [len(batch["label"]) for batch in Toy(test=10).test_dataloader()] == [8, 2]
    assert Toy().val_dataloader() == []


def test_loaders_leave_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    collect(Toy().train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_only_training_is_augmented():
    data, model = Toy(validation=12), Recorder()
    data.views = 1
    trainer(max_epochs=1).fit(model, datamodule=data)
    for part, samples in ("train", data.train_set), ("validation", data.validation_set):
        batch = model.batches[part]
        assert set(batch) == {"image", "label", "index", "view"}
        image = samples.images[batch["index"] - samples.first]
        if part == "train":
            image = flip_and_shift(image, batch["index"], batch["view"], True, 1, 0)
        assert torch.equal(batch["image"], image.float() / 255)
    trainer().test(model, datamodule=data, verbose=False)
    assert torch.equal(model.batches["test"]["image"], data.test_set.images[8:].float() / 255)
    predicted = trainer().predict(model, datamodule=data)
    assert torch.cat(predicted).tolist() == list(range(62, 72))


def test_fit_without_a_validation_part():
    model = Recorder()
    trainer(max_epochs=1).fit(model, datamodule=Toy())
    assert set(model.batches) == {"train"}


def test_views_of_an_epoch():
    model = Recorder()
    trainer(max_epochs=3).fit(model, datamodule=Toy(views=2))
    assert [model.seen[7 * epoch][1][0] for epoch in range(3)] == [0, 1, 0]


@pytest.mark.parametrize(("steps", "workers"), [(2, 0), (7, 0), (8, 0), (14, 0), (9, 2), (14, 2)])
def test_resumed_run_sees_the_same_batches(tmp_path, steps, workers):
    """Seven batches per epoch; 7 and 14 are the last ones of an epoch."""
    seed_everything(3, verbose=False)
    undisturbed, data = Recorder(), Toy()
    trainer(max_epochs=3, callbacks=[SaveEachBatch(tmp_path)]).fit(undisturbed, datamodule=data)
    assert len(undisturbed.seen) == 21
    data = Toy(num_workers=workers)
    resumed = Recorder(data)
    path = tmp_path / f"{steps}.ckpt"
    trainer(max_epochs=3).fit(resumed, datamodule=data, ckpt_path=path, weights_only=True)
    assert resumed.seen == undisturbed.seen[steps:]


@pytest.mark.parametrize("batches", [4, 7, 9])
def test_resumed_run_with_accumulated_gradients(tmp_path, batches):
    """Two batches per step, but the seventh of an epoch is alone: all three end a step."""
    seed_everything(3, verbose=False)
    undisturbed, options = Recorder(), {"max_epochs": 3, "accumulate_grad_batches": 2}
    trainer(**options, callbacks=[SaveEachBatch(tmp_path)]).fit(undisturbed, datamodule=Toy())
    data = Toy()
    resumed = Recorder(data)
    path = tmp_path / f"{batches}.ckpt"
    trainer(**options).fit(resumed, datamodule=data, ckpt_path=path, weights_only=True)
    assert resumed.seen == undisturbed.seen[batches:]


def test_ranks_share_an_epoch_and_every_test_sample():
    class Rank:
        def __init__(self, rank):
            self.global_rank, self.world_size = rank, 2

    parts = []
    for rank in range(2):
        data = Toy(test=11, batch_size=4)
        data.trainer = Rank(rank)
        parts.append(
            [collect(loader)["index"].tolist() for loader in (data.train_dataloader(), data.test_dataloader())]
        )
    (train, test), (other_train, other_test) = parts
    assert len(train) == len(other_train) == 28  # of 31 each, whole batches
    assert not set(train) & set(other_train)
    assert sorted(test + other_test) == list(range(62, 73))


def test_run_is_prolonged_from_an_epochs_end(tmp_path):
    seed_everything(3, verbose=False)
    undisturbed, first = Recorder(), trainer(max_epochs=1)
    trainer(max_epochs=2).fit(undisturbed, datamodule=Toy())
    first.fit(Recorder(), datamodule=Toy())
    first.save_checkpoint(tmp_path / "end.ckpt")
    data = Toy()
    resumed = Recorder(data)
    trainer(max_epochs=2).fit(resumed, datamodule=data, ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    assert resumed.seen == undisturbed.seen[7:]


def test_workers_change_nothing():
    alone, helped = collect(Toy().train_dataloader()), collect(Toy(num_workers=2).train_dataloader())
    assert all(torch.equal(alone[key], helped[key]) for key in alone)
