"""Runs through the command line: what a run leaves behind, and what bad input says."""

import csv
import errno
import json
import pickle
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdzoo import lightning_cli
from kdzoo.cli import main
from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.errors import UserError
from kdzoo.teachers import recipe

FEW = ["--trainer.max_steps", "4", "--trainer.limit_test_batches", "2", "--trainer.log_every_n_steps", "2"]
STUDENT = ["--model", "supervised", "--model.student", "cnn_14k", "--data", "fashion_mnist", "--data.validation", "500"]


def fit(*arguments: str, run_dir: Path) -> Path:
    main(["fit", *arguments, "--run_dir", str(run_dir), "--show", "nothing", "--trainer.accelerator", "cpu"])
    return run_dir


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of plain training."""
    validate = ["--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1"]
    return fit(*STUDENT, *FEW, *validate, run_dir=tmp_path_factory.mktemp("runs") / "supervised")


@pytest.fixture(scope="module")
def kd_run(run, tmp_path_factory) -> Path:
    """A finished run of `kd` with that run as the teacher."""
    arguments = ["--model", "kd", "--model.student", "cnn_14k", "--model.teacher.checkpoint", str(run)]
    data = ["--data", "fashion_mnist", "--data.labelled", "100"]
    return fit(*arguments, *data, *FEW, run_dir=tmp_path_factory.mktemp("runs") / "kd")


def says(capsys, *arguments: str, code: int = 1) -> str:
    """The one sentence that a failing command says."""
    with pytest.raises(SystemExit) as exit:
        main([*arguments])
    error = capsys.readouterr().err.strip()
    assert exit.value.code == code, error
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last.startswith("kdzoo: "), error
    return last


# ------------------------------------------------------------------------------------------------ what a run leaves


def test_a_runs_folder(run, kd_run):
    for folder in (run, kd_run):
        names = {path.name for path in folder.iterdir()}
        assert names == {"config.yaml", "metrics.csv", "result.json", "report.html", "checkpoints", "export"}
        assert not list(folder.rglob("*.tmp"))
    result = json.loads((kd_run / "result.json").read_text())
    assert result["method"] == "kd"
    assert result["steps"] == 4
    assert set(result["metrics"]) == {"test/accuracy", "test/nll", "test/ece"}
    teacher = json.loads((run / "result.json").read_text())
    assert result["teacher"]["scores"] == pytest.approx(teacher["metrics"])
    assert result["teacher"]["parameters"] == 13_906
    with (kd_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = {int(row["step"]) for row in rows if row["name"] == "train/kd"}
    assert steps == {2, 4}
    assert {row["name"] for row in rows} >= {"train/ce", "train/kd", "train/loss", "test/accuracy"}
    with (run / "metrics.csv").open() as file:
        assert {row["name"] for row in csv.DictReader(file)} >= {"val/accuracy", "val/nll", "val/ece"}
    page = (kd_run / "report.html").read_text()
    assert all(title in page for title in ("Confusion", "Calibration", "Predictions", "Training loss"))


def test_no_teacher_in_the_checkpoint(kd_run):
    checkpoint = torch.load(kd_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]
    assert all(name.startswith("student.") for name in checkpoint["state_dict"])


def test_the_saved_config_runs_again(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["class_path"] == "kdzoo.image.supervised.Supervised"
    again = fit("--config", str(run / "config.yaml"), run_dir=tmp_path / "again")
    first, second = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, again))
    assert first == second


def test_the_export_equals_predict(run, tmp_path, capsys):
    out = tmp_path / "out"
    main(["predict", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--run_dir", str(out), "--show", "nothing"])
    with (out / "predictions.csv").open() as file:
        predicted = list(csv.DictReader(file))[:256]
    data = FashionMNIST()
    data.setup()
    images = data.test_set.images[:256].float() / 255
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx")
    probabilities = torch.tensor(session.run(None, {"image": images.numpy()})[0]).softmax(1)
    for row, share, label in zip(predicted, *probabilities.max(1), strict=True):
        assert row["predicted"] == data.class_names[label]
        assert float(row["confidence"]) == pytest.approx(float(share), abs=1e-4)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_alone_is_enough(run, command, tmp_path, capsys):
    checkpoint = run / "checkpoints" / "last.ckpt"
    main([command, "--ckpt_path", str(checkpoint), "--show", "nothing"])
    lone = shutil.copy(checkpoint, tmp_path / "lone.ckpt")  # without the run's folder: the method is in the checkpoint
    data = ["--data", "fashion_mnist", "--data.validation", "500", "--trainer.limit_test_batches", "2"]
    capsys.readouterr()
    main([command, "--ckpt_path", str(lone), *data, "--show", "nothing"])


def test_export_again(run, tmp_path, capsys):
    main(["export", str(run), "--to", str(tmp_path / "export")])
    again, first = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "export", run / "export"))
    assert again == first


def test_a_teacher_is_a_run_an_export_or_a_checkpoint(run):
    from kdzoo.teachers.sources import Teacher, load, teachers

    spec = FashionMNIST().spec
    batch = {"image": torch.rand(3, 1, 28, 28)}
    paths = (run, run / "export", run / "checkpoints" / "last.ckpt")
    outputs = [load(teachers(Teacher(checkpoint=str(path))), spec)[0](batch) for path in paths]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_recipe_is_trained_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path / "cache"))
    config = yaml.safe_load((recipe.registry.find_config("teacher_fmnist_small")).read_text())
    config["trainer"] = {"max_epochs": -1, "max_steps": 2, "limit_test_batches": 1, "accelerator": "cpu"}
    config["model"]["init_args"]["student"] = "cnn_14k"
    file = tmp_path / "teacher.yaml"
    file.write_text(yaml.safe_dump(config))
    first = recipe.trained(str(file), {})
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert recipe.trained(str(file), {}) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert [path.name for path in first.parent.iterdir() if path.suffix != ".lock"] == [first.name]
    changed = recipe.read_config(str(file), {"data.flip": False, "model.optim": {"lr": 0.2}})
    assert recipe.key(changed) != first.name


def test_a_recipe_answers_for_its_own_teachers(tmp_path):
    teacher, student = tmp_path / "first.yaml", tmp_path / "second.yaml"
    config = yaml.safe_load(recipe.registry.find_config("teacher_fmnist_small").read_text())
    teacher.write_text(yaml.safe_dump(config))
    taught = yaml.safe_load(recipe.registry.find_config("kd_tiny").read_text())
    taught["model"]["init_args"]["teacher"] = str(teacher)
    student.write_text(yaml.safe_dump(taught))
    first = recipe.key(recipe.read_config(str(student), {}))
    config["model"]["init_args"]["student"] = "cnn_14k"
    teacher.write_text(yaml.safe_dump(config))
    assert recipe.key(recipe.read_config(str(student), {})) != first
    taught["model"]["init_args"]["teacher"] = [{"recipe": str(student)}]
    student.write_text(yaml.safe_dump(taught))
    with pytest.raises(UserError, match="among its own teachers"):
        recipe.key(recipe.read_config(str(student), {}))


def test_metrics_are_those_of_the_step(run, tmp_path):
    """FitNet's hint ends with its first stage: what Lightning remembers of it is not written on."""
    arguments = ["--config", "fitnet_tiny", "--model.teacher", f"{{checkpoint: {run}}}", "--model.hint_fraction", "0.5"]
    folder = fit(*arguments, *FEW, "--trainer.log_every_n_steps", "1", run_dir=tmp_path / "fitnet")
    with (folder / "metrics.csv").open() as file:
        rows = [(row["name"], int(row["step"])) for row in csv.DictReader(file)]
    assert {step for name, step in rows if name == "train/hint"} == {1, 2}
    assert {step for name, step in rows if name == "train/kd"} == {3, 4}
    assert {step for name, step in rows if name == "train/loss"} == {1, 2, 3, 4}


def test_wandb_offline(run, tmp_path):
    logger = [
        "--trainer.logger",
        "WandbLogger",
        "--trainer.logger.offline",
        "true",
        "--trainer.logger.project",
        "kdzoo",
    ]
    folder = fit(*STUDENT, *FEW, *logger, run_dir=tmp_path / "run")
    offline = list((folder / "wandb").glob("offline-run-*"))
    assert offline
    pictures = list(offline[0].rglob("*.png"))
    assert len(pictures) >= 3
    assert (folder / "config.yaml").is_file()
    assert (folder / "metrics.csv").is_file()


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["kd_tiny", "--model.teacher", "{recipe: teacher_fmnist_small, views: 0}"], "views must be 1 or more"),
        (["kd_tiny", "--model.teacher", "{timm: resnet18}"], "The teacher 'resnet18' has no weights"),
        (["dmae_tiny", "--model.teacher", "{recipe: teacher_mae_fmnist, store: fp16}"], "leave store out"),
        (["imdn_tiny", "--data.patch", "47"], "patch=47 must be a multiple of scale=2"),
        (["kd_tiny", "--data.batch_size", "0"], "batch_size=0 is too small"),
    ],
)
def test_what_a_constructor_refuses_is_one_sentence(arguments, sentence, capsys, tmp_path):
    said = says(capsys, "fit", "--config", *arguments, "--run_dir", str(tmp_path / "run"))
    assert sentence in said
    assert len(said) < 200


def test_a_choice_says_what_there_is(capsys):
    said = says(capsys, "fit", "--config", "kd_tiny", "--model.teacher", "{recipe: a, store: fp8}", code=2)
    assert said == "kdzoo: model.teacher.store: Expected one of 'fp32', 'fp16', got fp8."


def test_unknown_names(capsys):
    assert "no method named 'dkdd'. Near: dkd" in says(capsys, "fit", "--model", "dkdd")
    assert "Near: fashion_mnist" in says(capsys, "fit", "--model", "kd", "--data", "fashionmnist")
    assert "Near: kd_tiny" in says(capsys, "fit", "--config", "kd_tyny")
    assert "Near: cnn_14k" in says(capsys, "fit", "--config", "supervised_tiny", "--model.student", "cnn_15k")


def test_a_typo_in_an_argument(capsys, tmp_path):
    said = says(capsys, "fit", "--config", "kd_tiny", "--model.temprature", "2", code=2)
    assert "'temprature' is not an argument of kdzoo.image.kd.KD. Near: temperature" in said
    said = says(capsys, "fit", "--config", "kd_tiny", "--model.temperature", "warm", code=2)
    assert "temperature" in said
    assert "warm" in said
    config = yaml.safe_load(recipe.registry.find_config("kd_tiny").read_text())
    config["data"]["init_args"]["labeled"] = 5
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(config))
    assert "Near: labelled" in says(capsys, "fit", "--config", str(tmp_path / "typo.yaml"), code=2)
    assert "student" in says(capsys, "fit", "--model", "supervised", "--data", "fashion_mnist", code=2)
    assert "--trainer.max_epocs" in says(capsys, "fit", "--config", "kd_tiny", "--trainer.max_epocs", "3", code=2)


@pytest.mark.parametrize(
    ("key", "value"), [("classes", 7), ("channels", 3), ("image_size", [32, 32]), ("class_names", ["a"] * 10)]
)
def test_a_teacher_of_other_data(run, key, value):
    from kdzoo.errors import UserError
    from kdzoo.teachers.sources import Teacher, load

    spec = FashionMNIST().spec | {key: value}
    with pytest.raises(UserError, match=r"made for|other classes"):
        load([Teacher(checkpoint=str(run))], spec)
    with pytest.raises(UserError, match=r"made for|other classes"):
        load([Teacher(checkpoint=str(run / "checkpoints" / "last.ckpt"))], spec)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


def test_hostile_and_damaged_checkpoints(run, tmp_path, capsys):
    good, bad, fired = run / "checkpoints" / "last.ckpt", tmp_path / "bad.ckpt", tmp_path / "fired"
    bad.write_bytes(good.read_bytes()[:5000])
    assert "damaged" in says(capsys, "test", "--ckpt_path", str(bad))
    assert "There is no checkpoint" in says(capsys, "test", "--ckpt_path", str(tmp_path / "none.ckpt"))
    for content in (pickle.dumps(Bomb(fired)), None):
        if content is None:
            torch.save({"state_dict": {}, "hyper_parameters": Bomb(fired)}, bad)
        else:
            bad.write_bytes(content)
        for arguments in (
            ["test", "--ckpt_path", str(bad)],
            ["fit", *STUDENT, "--ckpt_path", str(bad)],
            ["export", str(bad)],
            ["fit", "--config", "kd_tiny", "--model.teacher", f"{{checkpoint: {bad}}}", "--show", "nothing",
             "--run_dir", str(tmp_path / "r")],
        ):  # fmt: skip
            assert "checkpoint" in says(capsys, *arguments)
            assert not fired.exists()


def test_a_checkpoint_of_another_architecture(run, tmp_path, capsys):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["student"] = "cnn_168k"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    said = says(capsys, "test", "--ckpt_path", str(tmp_path / "other.ckpt"), "--data", "fashion_mnist")
    assert "another architecture" in said
    checkpoint["hyper_parameters"]["_class_path"] = "os.system"
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    assert "no method named 'os.system'" in says(capsys, "test", "--ckpt_path", str(tmp_path / "foreign.ckpt"))


def test_a_class_path_outside_the_registry(tmp_path, capsys):
    config = yaml.safe_load(recipe.registry.find_config("supervised_tiny").read_text())
    config["model"] = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "fired")]}}
    (tmp_path / "hostile.yaml").write_text(yaml.safe_dump(config))
    assert "no method named 'subprocess.Popen'" in says(capsys, "fit", "--config", str(tmp_path / "hostile.yaml"))
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--trainer.callbacks", '[{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "FIRED"]}}]'),
        ("--trainer.logger", '{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "FIRED"]}}'),
        ("--trainer.strategy", '{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "FIRED"]}}'),
        ("--model.optim.optimizer", '{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "FIRED"]}}'),
        ("--model.optim.optimizer", "os.system"),
        (
            "--trainer.callbacks",
            '[{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": '
            '{"on_fit_start": "os.system"}}]',
        ),
        (
            "--model.optim.lr_scheduler",
            '{"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": "os._exit"}}',
        ),
        ("--data", "subprocess.Popen"),
        ("--model.student", "hf-hub:someone/something"),
        ("--model.weights", "/etc/passwd"),
        ("--config", "/etc/passwd"),
    ],
)
def test_arguments_run_nothing_and_read_nothing_else(argument, value, tmp_path, capsys):
    fired = tmp_path / "fired"
    arguments = [*STUDENT, *FEW, "--show", "nothing", "--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(["fit", *arguments, argument, value.replace("FIRED", str(fired))])
    said = capsys.readouterr().err.strip()
    assert said.startswith("kdzoo: ")
    assert "Traceback" not in said
    assert len(said) < 700
    assert not fired.exists()


def test_a_loss_that_is_no_number(tmp_path, capsys):
    arguments = [*STUDENT, *FEW, "--model.optim.lr", "1e30", "--trainer.max_steps", "20", "--show", "nothing"]
    said = says(capsys, "fit", *arguments, "--run_dir", str(tmp_path / "run"))
    assert "The loss became" in said
    assert "at step" in said
    assert "on the samples [" in said
    assert "there is no checkpoint yet" in said


def test_a_full_disk(tmp_path, monkeypatch, capsys):
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(lightning_cli, "write_text", full)
    said = says(capsys, "fit", *STUDENT, *FEW, "--run_dir", str(tmp_path / "run"), "--show", "nothing")
    assert "the disk is full" in said
    assert "make room" in said


def test_a_full_disk_leaves_the_last_checkpoint(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    arguments = [*STUDENT, *FEW, "--show", "nothing", "--run_dir", str(folder), "--save_every", "0"]
    save, room = torch.save, [1]

    def limited(checkpoint: object, file: object) -> None:
        if not room:
            file.write(b"half of a checkpoint")
            raise RuntimeError("unexpected pos") from OSError(errno.ENOSPC, "No space left on device", file.name)
        room.pop()
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", limited)
        assert "the disk is full" in says(capsys, "fit", *arguments)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
    main(["fit", *arguments, "--ckpt_path", "last"])  # room was made
    for name, tensor in load_file(run / "export" / "model.safetensors").items():
        assert torch.equal(load_file(folder / "export" / "model.safetensors")[name], tensor)


def test_a_full_disk_during_the_export(tmp_path, monkeypatch, capsys):
    from kdzoo.export import image

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "run"
    arguments = [*STUDENT, *FEW, "--show", "nothing", "--run_dir", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(image, "save_for_hf", full)
        assert "the disk is full" in says(capsys, "fit", *arguments)
    names = {path.name for path in folder.iterdir()}
    assert not {"export", "result.json"} & names
    assert not [name for name in names if name.startswith(".export")]
    main(["fit", *arguments, "--ckpt_path", "last"])
    assert (folder / "export" / "model.safetensors").is_file()


# ----------------------------------------------------------------------------------------------------- --ckpt_path last


def test_only_an_unfinished_run_of_the_same_config_is_continued(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning_cli, "datetime", Later())
    arguments = ["fit", *STUDENT, *FEW, "--trainer.accelerator", "cpu", "--ckpt_path", "last"]
    main(arguments)
    assert "a new one starts" in capsys.readouterr().out
    (first,) = Path("runs/supervised").iterdir()
    main(arguments)  # the first is finished
    assert "a new one starts" in capsys.readouterr().out
    (first / "result.json").unlink()
    main([*arguments, "--model.optim.lr", "0.01"])  # of another config
    assert "a new one starts" in capsys.readouterr().out
    assert len(list(Path("runs/supervised").iterdir())) == 3
    main([*arguments, "--show", "progress"])
    assert (first / "result.json").exists()
    assert len(list(Path("runs/supervised").iterdir())) == 3


class Later:
    """A clock whose every look is a second later, so that runs have folders of their own."""

    def __init__(self) -> None:
        self.second = 0

    def now(self) -> datetime:
        """Look."""
        self.second += 1
        return datetime(2026, 1, 1, 0, 0, self.second)


def test_a_run_at_work_is_left_alone(run, tmp_path, capsys):
    from filelock import FileLock

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "result.json").unlink()
    arguments = ["fit", *STUDENT, *FEW, "--show", "nothing", "--run_dir", str(folder), "--trainer.accelerator", "cpu"]
    with FileLock(folder / ".running"):
        assert "at work in another process" in says(capsys, *arguments)
        assert "at work in another process" in says(capsys, *arguments, "--ckpt_path", "last")


def test_evaluation_needs_a_checkpoint(capsys):
    assert "--ckpt_path" in says(capsys, "test", "--config", "kd_tiny", code=2)


def test_help_is_soon_there():
    import time

    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "kdzoo", "fit", "--help"], capture_output=True, text=True, check=True)
    assert "--model" in done.stdout
    assert time.monotonic() - start < 30  # 8 s on an idle machine; tests run beside each other
