"""SSLD against its equations: label-free, in two stages."""

import math

import pytest
import torch
from lightning import Trainer, seed_everything

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.export.image import export_image_network
from kdzoo.image.ssld import SSLD
from kdzoo.losses.logits import jensen_shannon, symmetric_kl
from kdzoo.optim import Optim
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = {"classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
}
TEACHER = Teacher(timm="cnn_14k", weights="none.safetensors")


def built(progress: float, **options):
    method = type("SSLD", (SSLD,), {"progress": property(lambda self: progress)})("cnn_14k", TEACHER, **options)
    with untrained_teachers():
        method.build_for(SPEC)
    return method.eval()


@pytest.fixture
def batch():
    batch = next(iter(RandomLike(SPEC, samples=6, batch_size=6).train_dataloader()))
    batch["label"][4:] = -1  # the pool
    return batch


def literal(student, teacher):
    total = 0.0
    for s, t in zip(student.detach().double().softmax(1), teacher.double().softmax(1)):
        total += sum(float(b * (b / a).log() + a * (a / b).log()) for a, b in zip(s, t)) / 2
    return total / len(student)


def test_divergences_against_a_loop():
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(4, 5), 3 * torch.randn(4, 5)
    assert float(symmetric_kl(student, teacher)) == pytest.approx(literal(student, teacher), rel=1e-5)
    p, q = student.double().softmax(1), teacher.double().softmax(1)
    m = (p + q) / 2
    js = (p * (p / m).log() + q * (q / m).log()).sum(1).mean() / 2
    torch.testing.assert_close(jensen_shannon(student, teacher), js.float())
    far = torch.tensor([[400.0, 0.0]])
    assert float(jensen_shannon(far, -far)) == pytest.approx(math.log(2))
    assert torch.isfinite(symmetric_kl(far.half(), -far.half()))


def test_stage_2_is_on_the_labelled_sets_images_alone(batch):
    first, second = built(0.5, finetune=0.2), built(0.9, finetune=0.2)
    for method, count in (first, 6), (second, 4):
        logits, teacher = method.student(batch["image"])[:count], method.teacher(batch)[:count]
        (term,) = method.losses(batch).values()
        assert term.item() == pytest.approx(literal(logits, teacher), rel=1e-4)
    batch["label"][:] = -1
    (term,) = second.losses(batch).values()
    assert term == 0
    term.backward()


def test_data_without_labels_have_no_pool(batch):
    second = built(0.9, finetune=0.2)
    batch["label"][:] = -1
    second.spec["labelled"] = False  # as of photographs of one's own
    (term,) = second.losses(batch).values()
    expected = literal(second.student(batch["image"]), second.teacher(batch))
    assert term.item() == pytest.approx(expected, rel=1e-4)


def test_each_stage_has_its_own_schedule():
    method = built(0.0, finetune=0.25, finetune_lr=0.01, optim=Optim(lr=2.0, schedule="cosine"))
    method._total_steps = 40
    configured = method.configure_optimizers()
    rates = []
    for _ in range(40):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    expected = [(1 + math.cos(math.pi * n / 30)) for n in range(30)]
    expected += [0.01 * (1 + math.cos(math.pi * n / 10)) for n in range(10)]
    assert rates == pytest.approx(expected)


class Watched(SSLD):
    """Keeps its losses; the labels may be shuffled."""

    def __init__(self, shuffled: bool) -> None:
        super().__init__("cnn_14k", TEACHER, finetune=0.4)
        self.shuffled, self.curve = shuffled, []

    def training_step(self, batch, batch_idx):
        if self.shuffled:
            batch["label"] = batch["label"].flip(0)
        loss = super().training_step(batch, batch_idx)
        self.curve.append(loss.item())
        return loss


def test_shuffled_labels_leave_the_loss_curve_bit_identical():
    curves = []
    for shuffled in (False, True):
        seed_everything(0, verbose=False)
        quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        with untrained_teachers():
            method = Watched(shuffled)
            Trainer(max_steps=6, accelerator="cpu", **quiet).fit(method, datamodule=RandomLike(SPEC, 12, 6))
        curves.append(method.curve)
    assert len(set(curves[0])) == 6
    assert curves[0] == curves[1]


def test_the_last_step_trains_the_classifier_alone(tmp_path, batch):
    export_image_network(build("cnn_14k", SPEC), SPEC, tmp_path / "student")
    method = built(0.0, head_only=True, weights=str(tmp_path / "student" / "model.safetensors")).train()
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    method._total_steps = 1
    optimizer = method.configure_optimizers()["optimizer"]
    optimizer.param_groups[0]["lr"] = 0.1  # not the warm-up's
    sum(method.losses(batch).values()).backward()
    optimizer.step()
    changed = {name for name, value in method.student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"network.fc.weight", "network.fc.bias"}


def test_bad_arguments():
    with pytest.raises(UserError, match=r"finetune=1\.0 is no part of a run"):
        SSLD("cnn_14k", TEACHER, finetune=1.0)
    with pytest.raises(UserError, match="give its weights"):
        SSLD("cnn_14k", TEACHER, head_only=True)
