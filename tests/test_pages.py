"""What README and CONTRIBUTING show is what is there."""

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml
from lightning import Trainer

from kdzoo import registry
from kdzoo.proof.table import markdown
from kdzoo.teachers.sources import untrained_teachers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_first_two_blocks_are_the_two_commands():
    first, second = blocks(README, "bash")
    assert "kdzoo fit --config kd_tiny" in first
    assert "pytest" in second


def test_the_commands_name_what_exists():
    for page in (README, CONTRIBUTING):
        for name in re.findall(r"--config (\w+)", page):
            assert name in registry.config_files() or name in ("NAME", "my_method_tiny"), name
        for name in re.findall(r"--model (\w+)", page):
            assert name in registry.entries(registry.METHODS) or name == "NAME", name
        for name in re.findall(r"--data (\w+)", page):
            assert name in registry.entries(registry.DATA) or name == "NAME", name


def test_the_python_example_runs(monkeypatch, tmp_path):
    (code,) = blocks(README, "python")
    monkeypatch.chdir(tmp_path)
    assert "Trainer(max_epochs=20)" in code
    short = 'Trainer(max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False)'
    with untrained_teachers():
        exec(compile(code.replace("Trainer(max_epochs=20)", short), "README.md", "exec"), {"Trainer": Trainer})


def test_the_yaml_examples_are_arguments_of_their_methods():
    import inspect

    from kdzoo.teachers.sources import Teacher, teachers

    for text in blocks(README, "yaml"):
        model = yaml.safe_load(text)["model"]
        cls = registry.find(registry.METHODS, model["class_path"]).load()
        assert model["init_args"].keys() <= inspect.signature(cls).parameters.keys()
        assert all(isinstance(each, Teacher) for each in teachers(model["init_args"]["teacher"]))


def test_the_table_is_the_recorded_one():
    assert markdown(None, []).strip() in README


def test_the_table_of_conversions_is_the_recorded_one():
    script = runpy.run_path(str(ROOT / "tests/bench/pvd_matrix.py"))
    record = json.loads((ROOT / "tests/bench/pvd_matrix.json").read_text())
    assert script["markdown"](record) in README
    for name, settings in (("steps", "STEPS"), ("teacher_steps", "TEACHER_STEPS"), ("rates", "RATES")):
        assert record[name] == script[settings], f"{name} changed since: run the script again"
    for teacher, row in record["conversions"].items():
        for field, cell in row.items():
            bound = record["images"][field]["looks"][-1][1]
            reached = [spent for spent, score in cell["looks"] if score >= bound]
            assert cell["reached"] == (reached[0] if reached else None), f"{teacher} to {field}"


def test_the_curve_of_mirage_is_the_recorded_one():
    script = runpy.run_path(str(ROOT / "tests/bench/mirage_curve.py"))
    record = json.loads((ROOT / "tests/bench/mirage_curve.json").read_text())
    assert script["markdown"](record) in README
    bench = json.loads(script["BENCH"].with_suffix(".json").read_text())
    seeds = [str(seed) for seed in bench["seeds"]]
    for arm, sizes in record.items():
        assert [int(size) for size in sizes] == list(script["SUPPORTS"])
        assert all(list(of_seed) == seeds for of_seed in sizes.values())
        ends = {"25000": arm, "2600000": f"{arm}_fifth"}  # these two are arms of the bench too
        for size, same in ends.items():
            found = [sizes[size][seed]["auc"] for seed in seeds]
            assert found == pytest.approx(bench["arms"][same]["values"]["test/auc"], abs=0.01)


def test_contributing_shows_nkd_whole():
    (method,) = (block for block in blocks(CONTRIBUTING, "python") if "class NKD" in block)
    assert method == (ROOT / "kdzoo/image/nkd.py").read_text()
    assert len(method.splitlines()) <= 80
    shown = blocks(CONTRIBUTING, "yaml")
    for name in ("nkd_tiny", "nkd_bench"):
        assert (ROOT / f"configs/image/{name}.yaml").read_text() in shown, name
    (line,) = (block for block in blocks(CONTRIBUTING, "toml") if "nkd" in block)
    assert line in (ROOT / "pyproject.toml").read_text()
