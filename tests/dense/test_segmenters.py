"""The methods that segment against their equations, their teachers, and what they write."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, interpolate

from kdzoo.cli import main
from kdzoo.datamodules.random_like import RandomLike
from kdzoo.datamodules.scenes import Scenes
from kdzoo.datamodules.segmentation_data import IGNORE
from kdzoo.dense.cwd import CWD
from kdzoo.dense.label_codes import encode
from kdzoo.dense.lad_seg import LADSeg
from kdzoo.dense.lad_teacher import LADTeacher
from kdzoo.dense.supervised_seg import SupervisedSeg
from kdzoo.errors import UserError
from kdzoo.export.segmentation import load_segmenter
from kdzoo.losses.dense import channel_wise
from kdzoo.metrics.segmentation import palette
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = Scenes(size=32).spec
NAME = "unet_110k"


def built(method, spec=SPEC):
    method.build_for(spec)
    return method.eval()


@pytest.fixture
def batch():
    batch = next(iter(RandomLike(SPEC, samples=3, batch_size=3).train_dataloader()))
    batch["mask"][:, :5] = IGNORE
    return batch


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs' folders with exports: a plain network, and teachers of two codings."""
    folder = tmp_path_factory.mktemp("runs")
    methods = {"plain": SupervisedSeg(NAME), "random": LADTeacher(NAME), "one_hot": LADTeacher(NAME, coding="one_hot")}
    for name, method in methods.items():
        files = built(method).export(folder / name / "export", {"test/miou": 50.0})
        assert files == ["README.md", "config.json", "model.onnx", "model.safetensors", "preprocessing.json"]
    return folder, methods


def teacher(runs, name):
    return Teacher(checkpoint=str(runs[0] / name))


def test_supervised(batch):
    method = built(SupervisedSeg(NAME))
    terms = method.losses(batch)
    assert terms.keys() == {"ce"}
    logits = interpolate(method.student.scores(batch["image"])[0], (32, 32), mode="bilinear")
    torch.testing.assert_close(terms["ce"], cross_entropy(logits, batch["mask"], ignore_index=IGNORE))


def test_the_auxiliary_head_is_trained_beside(batch):
    method = built(SupervisedSeg("deeplabv3_resnet18", aux_weight=0.5)).train()
    terms = method.losses(batch)
    assert terms.keys() == {"ce", "aux_ce"}
    terms["aux_ce"].backward()
    assert method.student.network.auxiliary[0][0].weight.grad.any()
    assert method.student.network.head.block[0][0].weight.grad is None


def test_cwd(batch, runs):
    method = built(CWD(NAME, teacher(runs, "plain"), cwd_weight=2.0, temperature=3.0))
    terms = method.losses(batch)
    scores = method.student.scores(batch["image"])[0]
    taught = runs[1]["plain"].student.scores(batch["image"])[0]
    torch.testing.assert_close(terms["cwd"], 2.0 * channel_wise(scores, taught, 3.0))
    assert method.teacher_summary()["scores"] == {"test/miou": 50.0}
    assert not any("teacher" in name for name in method.state_dict())
    # Another resolution of scores is interpolated to the student's.
    method = built(CWD("deeplabv3_resnet18", teacher(runs, "plain")))
    assert method.losses(batch)["cwd"].isfinite()


def test_the_label_assisted_teacher_has_two_paths(batch):
    method = built(LADTeacher(NAME, cwd_weight=5.0, temperature=4.0))
    torch.manual_seed(7)
    terms = method.losses(batch)
    assert terms.keys() == {"ce_1", "ce_2", "cwd"}
    torch.manual_seed(7)
    codes = [encode(batch["mask"], 11, "random", 0.03) for _ in range(2)]
    assert not torch.equal(*codes)
    one, two = (method.student.scores(torch.cat([batch["image"], code], dim=1))[0] for code in codes)
    torch.testing.assert_close(terms["cwd"], 5 * (channel_wise(one, two, 4.0) + channel_wise(two, one, 4.0)))
    for term, scores in (("ce_1", one), ("ce_2", two)):
        logits = interpolate(scores, (32, 32), mode="bilinear")
        torch.testing.assert_close(terms[term], cross_entropy(logits, batch["mask"], ignore_index=IGNORE))


def test_each_path_is_pulled_by_its_own_term_alone(batch, monkeypatch):
    """The second argument of each CWD is detached: with `scores` known, the gradient is that of two single terms."""
    method = built(LADTeacher(NAME))
    maps = [torch.randn(3, 11, 8, 8, requires_grad=True) for _ in range(2)]
    waiting = iter(maps)
    monkeypatch.setattr(method.student, "scores", lambda image: (next(waiting), None))
    method.losses(batch)["cwd"].backward()
    for mine, other in (maps, maps[::-1]):
        alone = mine.detach().clone().requires_grad_()
        (5 * channel_wise(alone, other.detach(), 4.0)).backward()
        torch.testing.assert_close(mine.grad, alone.grad)


def test_lad(batch, runs):
    method = built(LADSeg(NAME, teacher(runs, "random"), cwd_weight=3.0))
    torch.manual_seed(5)
    terms = method.losses(batch)
    torch.manual_seed(5)
    code = encode(batch["mask"], 11, "fixed", 0.02)
    scores = method.student.scores(batch["image"])[0]
    taught = runs[1]["random"].student.scores(torch.cat([batch["image"], code], dim=1))[0]
    torch.testing.assert_close(terms["cwd"], 3 * channel_wise(scores, taught, 4.0))
    assert method.student.network.stem[0][0].weight.shape[1] == 3  # the student sees the image alone


def test_a_teacher_of_another_coding_is_refused(runs):
    built(LADSeg(NAME, teacher(runs, "one_hot"), coding="one_hot"))
    with pytest.raises(UserError, match="takes 12 channels of labels, and LADSeg gives it 1"):
        built(LADSeg(NAME, teacher(runs, "one_hot")))
    with pytest.raises(UserError, match="takes 1 channels of labels, and CWD gives it 0"):
        built(CWD(NAME, teacher(runs, "random")))


def test_the_oracle_is_named_and_repeats(batch):
    """Its validation has no noise: the same batch gives the same logits."""
    method = built(LADTeacher(NAME))
    assert torch.equal(method.segment(batch), method.segment(batch))
    code = encode(batch["mask"], 11, "fixed", 0.0)
    assert torch.equal(method.segment(batch), method.student(torch.cat([batch["image"], code], dim=1)))


def test_a_student_starts_from_a_run(runs):
    method = built(LADSeg(NAME, teacher(runs, "random"), start=teacher(runs, "plain")))
    for name, weight in runs[1]["plain"].student.state_dict().items():
        assert torch.equal(method.student.state_dict()[name], weight)
    with pytest.raises(UserError, match="is a unet_110k, and the student that is to start from it a unet_440k"):
        built(SupervisedSeg("unet_440k", start=teacher(runs, "plain")))
    with pytest.raises(UserError, match="a student that has a start has weights"):
        SupervisedSeg(NAME, start=teacher(runs, "plain"), weights="pretrained")


@pytest.mark.parametrize(
    "wrong", [{"timm": "resnet18", "weights": "pretrained"}, {"recipe": "cwd_tiny", "store": "fp16"}]
)
def test_teachers_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="comes from a recipe or the folder of a run, and has no store"):
        built(CWD(NAME, Teacher(**wrong)))


def test_a_recipe_can_teach_untrained():
    with untrained_teachers():
        method = built(CWD(NAME, "teacher_scenes_unet"))
    assert method.teacher.networks[0].architecture == "unet_440k"


def test_data_without_masks_are_refused():
    with pytest.raises(UserError, match=r"SupervisedSeg takes data .* give it data with masks"):
        SupervisedSeg(NAME).build_for({"modality": "image", "classes": 3})


# ------------------------------------------------------------------------------------------- exports and what uses them


@pytest.mark.parametrize("name", ["unet_110k", "deeplabv3_resnet18", "pspnet_resnet18"])
def test_the_export_runs_without_kdzoo_and_comes_back(name, tmp_path):
    method = built(SupervisedSeg(name), Scenes(size=64).spec)
    method.export(tmp_path, {"test/miou": 12.0})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    size = (64, 64) if name.startswith("pspnet") else (72, 88)  # where it can be, another than the export's
    image = torch.rand(3, 3, *size)
    expected = method.student(image).detach()
    found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    network, config = load_segmenter(tmp_path)
    torch.testing.assert_close(network.eval()(image), expected)
    assert config["scores"] == {"test/miou": 12.0}
    preprocessing = json.loads((tmp_path / "preprocessing.json").read_text())
    assert preprocessing["input_size"] == [3, 64, 64]
    assert preprocessing["any_size"] == (not name.startswith("pspnet"))
    assert preprocessing["class_names"][1] == "T-shirt/top"


def test_the_readme_of_an_export_runs(runs, tmp_path, monkeypatch):
    shutil.copytree(runs[0] / "plain" / "export", tmp_path / "FOLDER")
    Image.new("RGB", (50, 40), "red").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    lines = (tmp_path / "FOLDER" / "README.md").read_text().splitlines()
    exec("\n".join(line.removeprefix("    ") for line in lines if line.startswith("    ")), {})
    assert Image.open("mask.png").size == (32, 32)
    assert "segments nothing by itself" in (runs[0] / "random" / "export" / "README.md").read_text()


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b"no weights"), lambda f: f.unlink()])
def test_a_damaged_export_is_one_sentence(damage, runs, tmp_path):
    shutil.copytree(runs[0] / "plain", tmp_path / "run")
    damage(tmp_path / "run" / "export" / "model.safetensors")
    with pytest.raises(UserError, match="run' holds no intact export of a segmentation run"):
        load_segmenter(tmp_path / "run")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    """Fit a teacher on two folders, then its student; the masks of one's own pictures come out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for part in "train", "val":
        for number in range(3):
            pixels = generator.integers(0, 256, (40, 50, 3), np.uint8)
            for kind, values in ("images", pixels), ("masks", pixels[..., 0] % 3):
                (tmp_path / "data" / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / "data" / kind / part / f"{number}.png")
    data = ["--data", "segmentation_folder", "--data.root", "data", "--data.layout", "folders", "--data.size", "32"]
    data += ["--data.class_names", "[ground, cat, dog]", "--data.batch_size", "3"]
    common = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--show", "nothing", *data]
    oracle = ["--model", "lad_teacher", "--model.student", NAME, "--run_dir", "oracle"]
    assert main(["fit", *oracle, *common]) in (0, None)
    metrics = json.loads((tmp_path / "oracle" / "result.json").read_text())["metrics"]
    assert metrics.keys() == {"test/miou", "test/oracle_miou"}
    assert metrics["test/miou"] == metrics["test/oracle_miou"]
    student = [
        "--model",
        "lad_seg",
        "--model.student",
        NAME,
        "--model.teacher.checkpoint",
        "oracle",
        "--run_dir",
        "run",
    ]
    assert main(["fit", *student, *common]) in (0, None)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Masks" in report
    assert "Classes" in report
    network = load_segmenter(tmp_path / "run")[0].eval()
    (tmp_path / "mine").mkdir()
    Image.fromarray(generator.integers(0, 256, (21, 34, 3), np.uint8)).save(tmp_path / "mine" / "photo.png")
    predict = ["predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "out"]
    assert main([*predict, "--data.image", "mine"]) in (0, None)
    with Image.open(tmp_path / "out" / "masks" / "photo.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == palette(3).flatten().tolist()
        image = torch.from_numpy(np.array(Image.open("mine/photo.png"))).permute(2, 0, 1)[None] / 255
        assert np.array_equal(np.asarray(mask), network(image).argmax(1)[0].numpy())
    assert main([*predict]) in (0, None)  # the test part
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
        "photo.png",
    ]


def test_networks_of_a_recipe_with_other_classes_are_refused(runs):
    other = {**SPEC, "classes": 3, "class_names": ["a", "b", "c"]}
    with pytest.raises(UserError, match=r"The network of .* was made for classes = 11"):
        built(CWD(NAME, teacher(runs, "plain")), other)
