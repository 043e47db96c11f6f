"""The conformance suite of kdzoo, and that the gradient reaches the student through the teacher's frozen classifier."""

import torch

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.teachers.sources import untrained_teachers
from kdzoo.testing import check_method
from kdzoo_example.srrl import SRRL


def test_conforms():
    check_method("srrl")


def test_the_teachers_classifier_is_used_and_stays():
    spec = {"classes": 10, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
    spec["keys"] = {
        "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
        "label": {"dtype": "int64", "shape": [], "low": 0, "high": 10},
    }
    data = RandomLike(spec, samples=8, batch_size=8)
    with untrained_teachers():
        method = SRRL("cnn_14k", "teacher_fmnist_small")
        method.build_for(spec)
    batch = next(iter(data.train_dataloader()))
    method.losses(batch)["sr"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.parameters())
    assert all(p.grad is None for p in method.teacher.networks[0].parameters())
    head = method.teacher.networks[0]
    feature = method.teacher.features(batch, ["features"])["features"]
    torch.testing.assert_close(head.forward_head(feature), method.teacher(batch))
