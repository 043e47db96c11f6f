"""The image methods against their equations, written out."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.image.dkd import DKD
from kdzoo.image.fitnet import FitNet
from kdzoo.image.kd import KD
from kdzoo.image.nkd import NKD
from kdzoo.image.supervised import Supervised
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = {"classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
}
TEACHER = Teacher(timm="cnn_14k", weights="none.safetensors")


def built(method, progress: float = 0.5):
    with untrained_teachers():
        method.build_for(SPEC)
    type(method).progress = property(lambda self: progress)  # each test has a class of its own
    return method.eval()


@pytest.fixture
def batch():
    batch = next(iter(RandomLike(SPEC, samples=6, batch_size=6).train_dataloader()))
    batch["label"][4:] = -1  # two samples without a label
    return batch


def subclass(cls):
    return type(cls.__name__, (cls,), {})


def logits(method, batch):
    return method.student(batch["image"]), method.teacher(batch)


def test_supervised_leaves_the_unlabelled_out(batch):
    method = built(subclass(Supervised)("cnn_14k", label_smoothing=0.1))
    expected = cross_entropy(method.student(batch["image"])[:4], batch["label"][:4], label_smoothing=0.1)
    torch.testing.assert_close(method.losses(batch)["ce"], expected)


def test_kd(batch):
    method = built(subclass(KD)("cnn_14k", TEACHER, temperature=3.0, kd_weight=0.7, ce_weight=0.3))
    student, teacher = logits(method, batch)
    terms = method.losses(batch)
    torch.testing.assert_close(terms["ce"], 0.3 * cross_entropy(student[:4], batch["label"][:4]))
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    torch.testing.assert_close(terms["kd"], 0.7 * 9 * (p * (p / q).log()).sum(1).mean())


def test_dkd_ramps_and_takes_the_teachers_class_without_a_label(batch):
    method = built(subclass(DKD)("cnn_14k", TEACHER, alpha=1.0, beta=2.0, ramp=0.8, temperature=2.0), progress=0.2)
    student, teacher = logits(method, batch)
    label = torch.cat([batch["label"][:4], teacher.argmax(1)[4:]])
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    total = 0.0
    for i in range(6):
        y = label[i]
        others = [c for c in range(5) if c != y]
        b_t, b_s = torch.stack([p[i, y], 1 - p[i, y]]), torch.stack([q[i, y], 1 - q[i, y]])
        n_t, n_s = p[i, others] / (1 - p[i, y]), q[i, others] / (1 - q[i, y])
        total += (b_t * (b_t / b_s).log()).sum() + 2.0 * (n_t * (n_t / n_s).log()).sum()
    torch.testing.assert_close(method.losses(batch)["dkd"], 0.25 * 4 * total / 6, rtol=1e-4, atol=1e-6)


def test_nkd(batch):
    method = built(subclass(NKD)("cnn_14k", TEACHER, gamma=1.5, temperature=2.0))
    student, teacher = logits(method, batch)
    label = torch.cat([batch["label"][:4], teacher.argmax(1)[4:]])
    total = 0.0
    for i in range(6):
        y = label[i]
        others = [c for c in range(5) if c != y]
        q_t, q_s = (teacher[i, others] / 2).softmax(0), (student[i, others] / 2).softmax(0)
        total += -teacher[i].softmax(0)[y] * student[i].log_softmax(0)[y] - 1.5 * 4 * (q_t * q_s.log()).sum()
    torch.testing.assert_close(method.losses(batch)["nkd"], total / 6, rtol=1e-4, atol=1e-6)


def test_fitnet_has_two_stages(batch):
    first = built(subclass(FitNet)("cnn_14k", TEACHER, hint_weight=10.0, hint_fraction=0.4), progress=0.1)
    terms = first.losses(batch)
    guided = first.regressor(first.student.features(batch["image"], ["1"])["1"])
    target = first.teacher.features(batch, ["1"])["1"]
    torch.testing.assert_close(terms["hint"], 10 * ((guided - target) ** 2).mean())
    assert terms["idle"] == 0
    sum(terms.values()).backward()
    assert first.student.network.fc.weight.grad.abs().sum() == 0  # layers above the hint wait
    assert first.student.network.conv[0].weight.grad.abs().sum() > 0

    second = built(subclass(FitNet)("cnn_14k", TEACHER, hint_fraction=0.4, temperature=3.0), progress=0.7)
    student, teacher = logits(second, batch)
    terms = second.losses(batch)
    # Half of stage 2 is done: lambda = 2.5.
    divergence = kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean")
    torch.testing.assert_close(terms["kd"], 2.5 * divergence)
    torch.testing.assert_close(terms["ce"], cross_entropy(student[:4], batch["label"][:4]))


def test_joint_fitnet_is_ce_and_hint(batch):
    method = built(subclass(FitNet)("cnn_14k", TEACHER, variant="joint"))
    assert set(method.losses(batch)) == {"ce", "hint"}


def test_the_teacher_stops_at_the_tap(batch):
    method = built(subclass(FitNet)("cnn_14k", TEACHER, teacher_tap="stage1", student_tap="stage1"), progress=0.0)
    ran = []
    network = method.teacher.networks[0].network
    for name in ("stage1", "stage2", "stage3", "fc"):
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    method.losses(batch)
    assert ran == ["stage1"]
