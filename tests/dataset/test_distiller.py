"""What all methods of the family share: the real images, the start, the judges, the pictures and the export."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from kdzoo.datamodules.augment import hash32
from kdzoo.dataset.distiller import rows_of
from kdzoo.dataset.dm import DM
from kdzoo.dataset.evaluation import Evaluation, train
from kdzoo.dataset.judges import Judges
from kdzoo.dataset.networks import POOL, make
from kdzoo.dataset.random import RandomCoreset
from kdzoo.dataset.real_images import RealImages
from kdzoo.errors import UserError
from kdzoo.metrics.robust_scores import ars, lrs

BRIEF = Evaluation(networks=2, epochs=3)
SMALL = {"width": 8, "evaluation": BRIEF}


def dm(**options) -> DM:
    return DM(**{"ipc": 2, "batch_real": 4, **SMALL, **options})


# ------------------------------------------------------------------------------------------------------- real images


def test_real_images_are_those_of_the_training_part(dots):
    data = dots(validation=3)
    real = RealImages.of(data, data.spec)
    assert torch.equal(real.images, data.train_set.images)
    assert torch.equal(real.labels, data.train_set.labels)
    for label, rows in enumerate(real.rows):
        assert (real.labels[rows] == label).all()
    torch.testing.assert_close(real.pixels(torch.tensor([3])), data.train_set.images[3:4] / 255)


def test_images_without_a_label_are_left_out(dots):
    data = dots(labelled=15)
    assert len(RealImages.of(data, data.spec)) == 15


def test_a_draw_has_no_image_twice_and_no_more_than_there_are(dots):
    real = RealImages.of(dots(), dots().spec)
    drawn = real.draw(2, 100)
    assert sorted(drawn.tolist()) == real.rows[2].tolist()
    assert len(set(real.draw(0, 5).tolist())) == 5


def test_a_class_with_fewer_images_than_ipc_is_named(dots, fit):
    with pytest.raises(UserError, match=r"The class 'below' has 8 training images, fewer than ipc=9: give ipc=8 or"):
        fit(dm(ipc=9), dots())


def test_a_class_without_images_is_named(dots, fit):
    with pytest.raises(UserError, match="The class 'right' has no labelled training image"):
        fit(dm(ipc=1), dots(counts=(5, 0, 5)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": 0}, "ipc=0 images per class are no data set"),
        ({"augmentation": "flop"}, "'flop' in the augmentation 'flop' is unknown"),
        ({"depth": 3}, "less than 2x2"),
        ({"network": "vgg12"}, "no network 'vgg12'"),
    ],
)
def test_bad_arguments(options, message, dots, fit):
    with pytest.raises(UserError, match=message):
        fit(dm(**options), dots())


@pytest.mark.parametrize("change", [{"networks": 0}, {"epochs": 0}, {"lr": 0.0}, {"augmentation": "spin"}])
def test_bad_evaluations(change):
    with pytest.raises(UserError):
        Evaluation(**change)


# --------------------------------------------------------------------------------------------------------- the start


def test_the_start_is_the_random_coreset_of_the_same_seed(dots, fit):
    start, coreset = dm(lr_img=0.0), RandomCoreset(ipc=2, **SMALL)
    fit(start, dots(), seed=7)
    fit(coreset, dots(), seed=7)
    assert torch.equal(start.images, coreset.images)
    other = RandomCoreset(ipc=2, **SMALL)
    fit(other, dots(), seed=8)
    assert not torch.equal(coreset.images, other.images)


def test_real_images_are_normalised_and_of_their_class(dots, fit):
    data, method = dots(), RandomCoreset(ipc=3, **SMALL)
    fit(method, data)
    pixels = (255 * method.preprocess.inverse(method.images)).round()
    for image, label in zip(pixels, method.labels):
        found = (data.train_set.images == image).flatten(1).all(1)
        assert data.train_set.labels[found].tolist() == [int(label)]
    assert method.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_noise_is_standard_normal(dots, fit):
    method = dm(ipc=8, init="noise", lr_img=0.0)
    fit(method, dots())
    assert abs(float(method.images.detach().mean())) < 0.1
    assert abs(float(method.images.detach().std()) - 1) < 0.1


# -------------------------------------------------------------------------------------------------------- evaluation


def test_training_is_the_protocol(dots):
    """Against the loop written out: the drop of the rate, the new optimizer, the order of the batches."""
    spec, size = dots().spec, 5
    images, labels = torch.randn(size, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    how = Evaluation(epochs=4, batch_size=3, augmentation="none")
    torch.manual_seed(1)
    network, expected = make("convnet", spec, 4), make("convnet", spec, 4)
    expected.load_state_dict(network.state_dict())
    torch.manual_seed(2)
    train(network, lambda rows: (images[rows], labels[rows]), size, how, 0.2)
    torch.manual_seed(2)
    velocity = [torch.zeros_like(weight) for weight in expected.parameters()]
    for epoch in range(4):
        if epoch == 3:
            velocity = [torch.zeros_like(weight) for weight in expected.parameters()]
        order = torch.randperm(size)
        for rows in (order[:3], order[3:]):
            weights = list(expected.parameters())
            gradients = torch.autograd.grad(cross_entropy(expected(images[rows]), labels[rows]), weights)
            with torch.no_grad():
                for number, (weight, gradient) in enumerate(zip(weights, gradients)):
                    velocity[number] = 0.9 * velocity[number] + gradient + 5e-4 * weight
                    weight -= (0.2 if epoch < 3 else 0.02) * velocity[number]
    for weight, other in zip(network.parameters(), expected.parameters()):
        torch.testing.assert_close(weight, other)


def test_the_score_is_the_mean_over_fresh_networks(dots, fit):
    data, method = dots(), RandomCoreset(ipc=4, **SMALL)
    trainer = fit(method, data, seed=3)
    (scores,) = trainer.test(method, datamodule=data, verbose=False)
    accuracies = []
    for number in range(2):
        torch.manual_seed(int(hash32(3, number)))
        network = make("convnet", data.spec, 8)
        train(network, lambda rows: (method.images.detach()[rows], method.labels[rows]), 12, BRIEF, BRIEF.lr)
        x = method.preprocess(data.test_set.images / 255)
        accuracies.append(100 * (network(x).argmax(1) == data.test_set.labels).float().mean())
    assert scores["test/accuracy"] == pytest.approx(float(sum(accuracies) / 2), abs=1e-4)
    assert scores["test/accuracy_std"] == pytest.approx(float(torch.stack(accuracies).std()), abs=1e-4)
    assert scores["test/bytes"] == 12 * 64 * 4 + 12 * 8


def test_a_test_leaves_the_random_state_alone(dots, fit):
    data, method = dots(), RandomCoreset(ipc=1, **SMALL)
    trainer = fit(method, data)
    before = torch.get_rng_state()
    trainer.test(method, datamodule=data, verbose=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_on_more_images_is_better(dots, fit):
    """The judges learn: the three quarters are easily told apart."""
    data = dots()
    method = RandomCoreset(ipc=8, width=8, evaluation=Evaluation(networks=2, epochs=40))
    (scores,) = fit(method, data).test(method, datamodule=data, verbose=False)
    assert scores["test/accuracy"] > 90


def test_the_pool_reports_every_architecture(fit, monkeypatch):
    from kdzoo.datamodules.random_like import RandomLike

    keys = {"image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0}}
    keys["label"] = {"dtype": "int64", "shape": [], "low": 0, "high": 2}
    spec = {"modality": "image", "classes": 2, "channels": 1, "image_size": [28, 28], "mean": [0.5], "std": [0.3]}
    data = RandomLike({**spec, "keys": keys}, samples=4)
    how = Evaluation(networks=1, epochs=1, pool=True)
    method = RandomCoreset(ipc=1, width=8, evaluation=how)
    (scores,) = fit(method, data).test(method, datamodule=data, verbose=False)
    assert {f"test/accuracy_{name}" for name in POOL} <= scores.keys()
    assert scores["test/accuracy_convnet"] == scores["test/accuracy"]
    rates = {}
    monkeypatch.setattr(Judges, "train", lambda judges, group, name, *given: rates.update({name: given[3]}))
    method.learned_lr = torch.tensor(0.5)  # suits the network that it was learned with
    method._train_judges()
    assert rates == {name: 0.5 if name == "convnet" else how.lr for name in POOL}


def test_robust_scores_come_from_their_comparisons(dots, fit):
    """With hard labels: LRS and ARS from four accuracies, each of networks trained here once more."""
    data = dots()
    how = Evaluation(networks=2, epochs=12, robustness=True, real_epochs=4)
    method = DM(ipc=2, batch_real=4, lr_img=20.0, width=8, evaluation=how)
    trainer = fit(method, data, steps=4)
    del method.real  # as in a test of a checkpoint
    (scores,) = trainer.test(method, datamodule=data, verbose=False)
    rows = method.real.choose(2, 0)
    sets = {
        "own": (method.images.detach(), method.labels, how),
        "random": (method.real_images(rows), method.real.labels[rows], how),
        "all": (method.real_images(torch.arange(30)), method.real.labels, replace(how, epochs=4)),
        "plain": (method.images.detach(), method.labels, replace(how, augmentation="none")),
    }
    sets["random plain"] = (*sets["random"][:2], replace(how, augmentation="none"))
    accuracy = {}
    for name, (images, labels, recipe) in sets.items():
        judges = Judges(data.spec, 8, None, 0, torch.device("cpu"))
        judges.train("one", "convnet", rows_of(images, labels), len(images), recipe, recipe.lr)
        judges.update(method.preprocess(data.test_set.images / 255), data.test_set.labels)
        accuracy[name] = float(judges.percent("one").mean())
    assert scores["test/accuracy"] == pytest.approx(accuracy["own"])
    assert scores["test/accuracy_random"] == pytest.approx(accuracy["random"])
    assert scores["test/accuracy_all"] == pytest.approx(accuracy["all"])
    expected = lrs(accuracy["own"], accuracy["random"], accuracy["own"], accuracy["all"])
    assert scores["test/lrs"] == pytest.approx(expected, abs=1e-4)
    expected = ars((accuracy["own"], accuracy["random"]), (accuracy["plain"], accuracy["random plain"]))
    assert scores["test/ars"] == pytest.approx(expected, abs=1e-4)


def test_validation_inside_a_fit_is_for_those_who_ask(dots, fit):
    for during_fit in False, True:
        how = Evaluation(networks=1, epochs=1, during_fit=during_fit)
        method = RandomCoreset(ipc=1, width=8, evaluation=how)
        trainer = fit(method, dots(validation=6), steps=6)
        assert ("val/accuracy" in trainer.callback_metrics) == during_fit
    (scores,) = trainer.validate(method, datamodule=dots(validation=6), verbose=False)
    assert "val/accuracy" in scores


# ------------------------------------------------------------------------------------------------ pictures and export


def test_the_evolution_begins_at_the_start_and_ends_at_the_end(dots, fit):
    data, method = dots(), dm(lr_img=20.0)
    trainer = fit(method, data, steps=20)
    coreset = RandomCoreset(ipc=2, **SMALL)
    fit(coreset, data)

    def shown(images):
        return (255 * method.preprocess.inverse(images[::2]).clamp(0, 1)).round().to(torch.uint8)

    assert int(method.taken) == 8
    assert torch.equal(method.history[0], shown(coreset.images.detach()))
    assert torch.equal(method.history[-1], shown(method.images.detach()))
    trainer.test(method, datamodule=data, verbose=False)
    assert method.figures().keys() == {"Synthetic images", "Evolution"}


def test_a_short_run_has_its_last_state_too(dots, fit):
    method = dm()
    fit(method, dots(), steps=2)
    assert int(method.taken) == 3
    assert not torch.equal(method.history[0], method.history[2])
    coreset = RandomCoreset(ipc=2, **SMALL)
    trainer = fit(coreset, dots())
    trainer.test(coreset, datamodule=dots(), verbose=False)
    assert coreset.figures().keys() == {"Synthetic images"}


def test_the_export_loads_without_kdzoo(dots, fit, tmp_path):
    data, method = dots(), dm()
    fit(method, data, steps=2, seed=5)
    files = method.export(tmp_path / "export", {"test/accuracy": 50.0})
    assert files == ["README.md", "dataset.json", "grid.png", "images.safetensors"]
    lines = (tmp_path / "export" / "README.md").read_text().splitlines()
    code = [line.strip().replace("FOLDER", str(tmp_path / "export")) for line in lines if line.startswith("    ")]
    assert len(code) == 3
    names: dict = {}
    exec("\n".join(code), names)
    assert isinstance(names["dataset"], TensorDataset)
    images, labels = names["dataset"].tensors
    assert torch.equal(images, method.images)
    assert torch.equal(labels, method.labels)
    facts = json.loads((tmp_path / "export" / "dataset.json").read_text())
    assert facts["method"] == "DM"
    assert facts["arguments"]["batch_real"] == 4
    assert facts["data_hash"] == data.fingerprint()
    assert facts["seed"] == 5
    assert facts["preprocessing"] == {"mean": [0.3], "std": [0.25]}
    assert facts["scores"] == {"test/accuracy": 50.0}
    assert facts["learning_rate"] is None
    with Image.open(tmp_path / "export" / "grid.png") as grid:
        assert grid.size == (2 * 9 - 1, 3 * 9 - 1)
        first = np.asarray(grid)[:8, :8, 0] / 255
    wanted = method.preprocess.inverse(method.images.detach())[0, 0].clamp(0, 1)
    np.testing.assert_allclose(first, wanted, atol=0.5 / 255 + 1e-6)


def test_a_checkpoint_holds_all_that_the_export_needs(dots, fit, tmp_path):
    method = dm()
    trainer = fit(method, dots(), steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    method.export(tmp_path / "one")
    loaded = DM.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    loaded.export(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "images.safetensors") for name in ("one", "two"))
    assert torch.equal(one["images"], two["images"])
    assert (tmp_path / "one" / "dataset.json").read_text() == (tmp_path / "two" / "dataset.json").read_text()


def test_a_resumed_distillation_ends_at_the_same_set(dots, fit, tmp_path):
    whole = dm(augmentation="color_crop_flip")
    fit(whole, dots(), steps=7)
    half = dm(augmentation="color_crop_flip")
    fit(half, dots(), steps=4).save_checkpoint(tmp_path / "half.ckpt")
    resumed = dm(augmentation="color_crop_flip")
    fit(resumed, dots(), steps=7, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(whole.images, resumed.images)


def test_data_without_classes_are_refused(fit):
    from kdzoo.datamodules.sr_folder import SRFolder

    spec = SRFolder(scale=2, patch=24).spec
    with pytest.raises(UserError, match="DM takes data of the modality 'image'"):
        dm().build_for(spec)
    with pytest.raises(UserError, match="DM distils labelled images"):
        dm().build_for({**spec, "modality": "image"})
