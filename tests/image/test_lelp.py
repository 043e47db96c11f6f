"""LELP: what its sub-classes promise."""

import onnxruntime
import pytest
import torch
from lightning import Trainer, seed_everything
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.image.lelp import LELP, class_directions, linear_classifier, null_space, subclass_targets
from kdzoo.losses.logits import kd
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher, untrained_teachers

TEACHER = Teacher(timm="cnn_14k", weights="none.safetensors")


def fitted(datamodule=None, **arguments) -> LELP:
    """A method after one step on 200 images of two classes."""
    seed_everything(0, verbose=False)
    data = datamodule or FashionMNIST(groups=2, labelled=200, unlabelled="drop", batch_size=64, shift=0, flip=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with untrained_teachers():
        method = LELP("cnn_14k", TEACHER, **{"subclasses": 4, **arguments})
        Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet).fit(method, datamodule=data)
    return method


def every_sample(data: FashionMNIST) -> dict:
    rows = [(row, 0) for row in range(len(data.train_set))]
    return data.prepare(data.train_set.__getitems__(rows), augment=False)


def test_the_sub_classes_of_a_class_share_what_the_teacher_says_of_it():
    torch.manual_seed(0)
    logits, scores = 5 * torch.randn(64, 3), 8 * torch.randn(64, 3, 7)
    for temperature in (1.0, 4.0):
        targets = subclass_targets(logits, scores, tau=0.3, temperature=temperature)
        classes = (logits.double() / temperature).softmax(1)
        assert (targets.unflatten(1, (3, 7)).sum(2) - classes).abs().max() < 1e-6
    by_hand = classes[5, 2] * torch.exp(scores[5, 2, 4].double() / 0.3) / torch.exp(scores[5, 2].double() / 0.3).sum()
    torch.testing.assert_close(targets[5, 2 * 7 + 4].double(), by_hand, rtol=1e-4, atol=1e-9)


def test_directions_are_of_variance_one_and_hidden_from_the_classifier():
    torch.manual_seed(0)
    weight = torch.randn(3, 20)
    embedding = torch.randn(500, 20, dtype=torch.float64) @ torch.randn(20, 20, dtype=torch.float64)
    covariance = torch.cov(embedding.T, correction=0)
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    directions = class_directions(covariance, null_space(weight), rotation)
    torch.testing.assert_close(weight.double() @ directions, torch.zeros(3, 5, dtype=torch.float64), atol=1e-9, rtol=0)
    scores = embedding @ directions
    torch.testing.assert_close(torch.cov(scores.T, correction=0), torch.eye(5, dtype=torch.float64), atol=1e-6, rtol=0)
    loose = embedding @ class_directions(covariance, null_space(weight), torch.eye(5), whiten=False)
    variance = loose.var(0, correction=0)
    assert variance.mean() == pytest.approx(1)
    assert variance.max() > 1.5 * variance.min()
    # The span is that of the principal directions of the hidden part.
    hidden = (embedding - embedding.mean(0)) @ null_space(weight)
    principal = torch.linalg.svd(hidden)[2][:5]
    torch.testing.assert_close(principal.T @ principal @ directions, directions, atol=1e-6, rtol=1e-6)


def test_it_is_fitted_once_on_the_training_part_as_it_is():
    data = FashionMNIST(groups=2, labelled=200, unlabelled="drop", batch_size=64)
    method = fitted(data)
    batch = every_sample(data)
    taught = method.teacher.features(batch, ["logits", "pre_logits"])
    for label in (0, 1):
        embedding = taught["pre_logits"][batch["label"] == label]
        torch.testing.assert_close(method.mean[label], embedding.mean(0), atol=1e-5, rtol=1e-5)
        scores = (embedding - embedding.mean(0)).double() @ method.directions[label].double()
        torch.testing.assert_close(scores.var(0, correction=0), torch.ones(4, dtype=torch.float64), atol=1e-3, rtol=0)
    method.mean.zero_()
    method.on_train_start()
    assert not method.mean.any()  # a resumed run goes on with what is in the checkpoint
    assert {"mean", "directions", "rotations", "fitted"} <= method.state_dict().keys()


def test_the_loss_is_the_cross_entropy_of_all_sub_classes():
    method = fitted(temperature=2.0, tau=0.5, ce_weight=0.3).eval()
    data = FashionMNIST(groups=2, labelled=200, unlabelled="drop", batch_size=64)
    data.setup()
    batch = every_sample(data)
    terms = method.losses(batch)
    logits = method.student.network(batch["image"])
    expected = -(method.targets(batch) * (logits / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms["subclass"], 4 * expected)
    probabilities = (logits / 2).softmax(1).unflatten(1, (2, 4)).sum(2)
    merged = method.student(batch["image"])
    torch.testing.assert_close((merged / 2).softmax(1), probabilities)
    torch.testing.assert_close(terms["ce"], 0.3 * cross_entropy(merged, batch["label"]))
    method.ce_weight = 0.0
    shuffled = method.losses({**batch, "label": batch["label"].flip(0)})
    assert set(shuffled) == {"subclass"}
    assert torch.equal(shuffled["subclass"], terms["subclass"])  # knows no label, once it is fitted


def test_one_sub_class_is_plain_distillation():
    data = FashionMNIST(groups=2, labelled=200, unlabelled="drop", batch_size=64)
    method = fitted(data, subclasses=1, temperature=3.0).eval()
    batch = every_sample(data)
    teacher = method.teacher(batch)
    entropy = torch.distributions.Categorical(logits=teacher / 3).entropy().mean()
    plain = kd(method.student(batch["image"]), teacher, 3.0)
    torch.testing.assert_close(method.losses(batch)["subclass"] - 9 * entropy, plain, atol=1e-4, rtol=1e-4)


def test_the_export_sums_the_sub_classes(tmp_path):
    method = fitted().eval()
    assert "model.onnx" in method.export(tmp_path / "export")
    image = torch.rand(3, 1, 28, 28)
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
    (logits,) = session.run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), method.student(image), atol=1e-5, rtol=1e-4)


def test_a_student_may_start_from_a_recipe():
    with untrained_teachers():
        LELP("cnn_14k", TEACHER, subclasses=4, weights="recipe:supervised_tiny").build_for(FashionMNIST(groups=2).spec)


def test_purity_is_that_of_the_most_frequent_finer_class():
    method = fitted()
    part = FashionMNIST(groups=2, batch_size=500)
    part.setup()
    batch = part.prepare(part.test_set.__getitems__([(row, 0) for row in range(500)]), augment=False)
    chosen, found = method.targets(batch).argmax(1), {}
    for subclass, finer in zip(chosen.tolist(), batch["class"].tolist()):
        found.setdefault(subclass, []).append(finer)
    expected = sum(max(map(finer.count, set(finer))) for finer in found.values()) / 5
    logged = {}
    method.log = lambda name, value: logged.update({name: float(value)})
    method.log_dict = lambda *_, **__: None
    method.on_test_start()
    method.test_step(batch, 0)
    method.on_test_epoch_end()
    assert logged["test/purity"] == pytest.approx(expected)


def test_what_does_not_fit_is_said(tmp_path):
    spec = FashionMNIST(groups=2).spec
    save_file(build("cnn_14k", {**spec, "classes": 1}).network.state_dict(), tmp_path / "binary.safetensors")
    binary = Teacher(timm="cnn_14k", weights=str(tmp_path / "binary.safetensors"))
    with pytest.raises(UserError, match=r"'cnn_14k' has one logit for two classes.*second row of zeros"):
        LELP("cnn_14k", binary).build_for(spec)
    one_column = build("cnn_14k", {**spec, "classes": 1})
    with pytest.raises(UserError, match=r"'cnn_14k' has one logit for two classes.*second row of zeros"):
        linear_classifier((one_column,), 2)
    with pytest.raises(UserError, match="has 5 logits, and the data have 2 classes"):
        linear_classifier((build("cnn_14k", {**spec, "classes": 5}),), 2)
    with pytest.raises(UserError, match="give a single teacher"):
        linear_classifier((one_column, one_column), 2)
    with untrained_teachers():
        with pytest.raises(UserError, match="39 sub-classes in 38 directions"):
            LELP("cnn_14k", TEACHER, subclasses=39).build_for(spec)
        with pytest.raises(UserError, match=r"class \d has \d training samples"):
            fitted(RandomLike(spec, 8, 4))
    with pytest.raises(UserError, match="subclasses >= 1 and tau > 0"):
        LELP("cnn_14k", TEACHER, subclasses=0)
