"""A plugin is a real package: written, built, installed, listed, and run by its own tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdzoo import registry
from kdzoo.cli import main

EXAMPLE = Path(__file__).parent.parent / "plugins" / "kdzoo-example"


def test_the_example_is_what_new_plugin_writes(tmp_path, monkeypatch):
    """All of it, but for one method more."""
    monkeypatch.setattr(registry, "entries", lambda group: {})  # it may be installed here
    main(["new-plugin", "example", "--path", str(tmp_path)])
    written = tmp_path / "kdzoo-example"
    for file in written.rglob("*"):
        if file.is_file():
            example = (EXAMPLE / file.relative_to(written)).read_text()
            lines = example.splitlines()
            if file.name == "pyproject.toml":
                lines = [line for line in lines if not line.startswith("srrl = ")]
            assert lines == file.read_text().splitlines(), file.name


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The example as pip installs it, from a wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("plugin")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(EXAMPLE)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return target


def python(installed: Path, *arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed(installed, tmp_path):
    assert "kdzoo-example 0.1.0" in python(installed, "-m", "kdzoo", "list", cwd=tmp_path)
    assert "srrl_tiny" in python(installed, "-m", "kdzoo", "info", "srrl", cwd=tmp_path)


def test_it_passes_its_own_tests(installed, tmp_path):
    out = python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"), cwd=tmp_path)
    assert "4 passed" in out


def test_it_fits(installed, tmp_path):
    few = ["--trainer.max_steps", "3", "--trainer.limit_test_batches", "1", "--trainer.accelerator", "cpu"]
    teacher = tmp_path / "teacher"
    plain = ["--model", "supervised", "--model.student", "cnn_14k", "--data", "fashion_mnist"]
    main(["fit", *plain, *few, "--run_dir", str(teacher), "--show", "nothing"])
    method = ["--config", "srrl_tiny", "--model.teacher", f"{{checkpoint: {teacher}}}"]
    run = ["-m", "kdzoo", "fit", *method, *few, "--run_dir", str(tmp_path / "run")]
    assert "result" in python(installed, *run, cwd=tmp_path)
    assert (tmp_path / "run" / "export" / "model.onnx").is_file()
