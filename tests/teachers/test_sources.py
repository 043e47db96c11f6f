"""Networks out of checkpoints, whatever head they have."""

import pytest
import torch
import yaml

from kdzoo import registry
from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.errors import UserError
from kdzoo.image.supervised import Supervised
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher, network_of

SPEC = {"modality": "image", "classes": 5, "channels": 3, "image_size": [32, 32], "mean": [0.3] * 3, "std": [0.3] * 3}


HEADS = {"cnn_14k": 1, "resnet10t": 1, "deit_tiny_distilled_patch16_224": 2}
CASES = [*((name, False) for name in HEADS), *((name, True) for name, heads in HEADS.items() if heads == 1)]


@pytest.mark.parametrize(("name", "headless"), CASES)
def test_a_checkpoint_gives_back_the_network(name, headless, tmp_path):
    """One head, two heads (a distilled DeiT), or none, as after a pre-training."""
    network = build(name, {**SPEC, "classes": 0} if headless else SPEC).eval()
    state = {f"student.{key}": value for key, value in network.state_dict().items()}
    checkpoint = {"state_dict": state, "hyper_parameters": {"student": name}, "spec": SPEC}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    found, scores = network_of(Teacher(checkpoint=str(tmp_path / "last.ckpt")), SPEC)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.eval()(image), network(image))
    assert scores == {}
    assert found.replaced == (0 if headless else None)


def test_a_student_starts_from_what_a_recipe_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path / "cache"))
    recipe = yaml.safe_load(registry.find_config("supervised_tiny").read_text())
    recipe["trainer"] = {"accelerator": "cpu", "max_epochs": -1, "max_steps": 2}
    (tmp_path / "start.yaml").write_text(yaml.safe_dump(recipe))
    method = Supervised(student="cnn_14k", weights=f"recipe:{tmp_path / 'start.yaml'}")
    assert registry.recipes_in({"model": {"weights": method.weights}}) == {str(tmp_path / "start.yaml")}
    method.prepare()
    method.build_for(FashionMNIST().spec)
    trained, _ = network_of(Teacher(recipe=str(tmp_path / "start.yaml")), FashionMNIST().spec)
    image = torch.rand(4, 1, 28, 28)
    assert torch.equal(method.student.eval()(image), trained.eval()(image))


def test_an_unknown_recipe_is_said_before_a_teacher_is_trained():
    with pytest.raises(UserError, match="supervised_tny"):
        Supervised(student="cnn_14k", weights="recipe:supervised_tny")
