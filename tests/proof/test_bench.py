import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdzoo import registry
from kdzoo.errors import UsageError, UserError
from kdzoo.proof import bench, criteria, table
from kdzoo.registry import find_config

BENCH = {
    "metrics": ["test/accuracy", "cpu_seconds"],
    "seeds": [0, 1, 2],
    "arms": {"ce": {"config": "plain_tiny"}, "kd": {"config": "soft_tiny", "set": {"model.temperature": 4}}},
    "criteria": [
        {"metric": "test/accuracy", "left": "kd", "minus": "ce", "at_least": 3.0},
        {"metric": "cpu_seconds", "left": "kd", "ratio_to": "ce", "at_most": 1.5},
    ],
    "rows": [{"label": "to the teacher", "metric": "test/accuracy", "left": "teacher", "minus": "kd"}],
}

# Stands for `python -m kdzoo fit`: notes that it ran, and writes a result; fails while a file `broken` lies there.
STUB = """
import json, pathlib, sys
config, seed, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
with open("calls", "a") as calls:
    calls.write(f"{config} {seed}\\n")
folder.mkdir()
(folder / "checkpoints").mkdir()
if config == "soft_tiny" and seed == 1 and pathlib.Path("broken").exists():
    sys.exit("Traceback\\nkdzoo: the moon is full")
kd = config == "soft_tiny"
teacher = {"source": "recipe t", "hash": "3f2a91c0", "parameters": 297000, "scores": {"test/accuracy": 89.0 + seed}}
result = {
    "method": "kd" if kd else "supervised", "seed": seed, "steps": 10, "teacher": teacher if kd else None,
    "metrics": {"test/accuracy": 80 + seed + (4 + 0.1 * seed if kd else 0), "test/nll": 0.5},
    "train_seconds": 1.5, "cpu_seconds": 3.0 + 0.3 * kd, "peak_mb": 120.0, "trainable_params": 14500,
    "total_params": 14500, "versions": {"kdzoo": "0.1.0"},
}
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A checkout with a bench `soft` of two arms, and a stub in the place of `kdzoo fit`."""
    folder = tmp_path / "configs" / "image"
    folder.mkdir(parents=True)
    (tmp_path / "stub.py").write_text(STUB)
    (folder / "plain_tiny.yaml").write_text("model: {class_path: supervised}\n")
    (folder / "soft_tiny.yaml").write_text("model: {class_path: kd}\n")
    (folder / "soft_bench.yaml").write_text(yaml.safe_dump(BENCH, sort_keys=False))

    def find(stem):
        path = folder / f"{stem}.yaml"
        return path if path.exists() else find_config(stem)

    def command(arm, seed, run_dir):
        return [sys.executable, "-S", str(tmp_path / "stub.py"), arm["config"], str(seed), str(run_dir)]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "find_config", find)
    monkeypatch.setattr(registry, "find_config", find)
    monkeypatch.setattr(bench, "command", command)
    return folder


def calls():
    return Path("calls").read_text().split("\n")[:-1] if Path("calls").exists() else []


def write(folder, **changes):
    (folder / "soft_bench.yaml").write_text(yaml.safe_dump({**BENCH, **changes}, sort_keys=False))


def test_a_whole_bench(configs, capsys):
    assert bench.main(["soft"]) == 0
    assert calls() == [f"{arm} {seed}" for seed in (0, 1, 2) for arm in ("plain_tiny", "soft_tiny")]
    recorded = json.loads((configs / "soft_bench.json").read_text())
    keys = "method metrics criteria passed rows seeds arms versions config_sha256"
    assert list(recorded) == keys.split()
    assert recorded["method"] == "kd"
    assert recorded["passed"] is True
    assert recorded["config_sha256"] == criteria.config_sha256(configs / "soft_bench.yaml")
    assert recorded["arms"]["kd"] == {
        "values": {"test/accuracy": [84.0, 85.1, 86.2], "cpu_seconds": [3.3, 3.3, 3.3]},
        "mean": {"test/accuracy": 85.1, "cpu_seconds": 3.3},
        "std": {"test/accuracy": 1.1, "cpu_seconds": 0.0},
        "train_seconds": 1.5,
        "cpu_seconds": 3.3,
        "peak_mb": 120.0,
        "trainable_params": 14500.0,
    }
    assert recorded["arms"]["teacher"]["mean"] == {"test/accuracy": 90.0, "cpu_seconds": None}
    first = recorded["criteria"][0]
    assert first["value"] == pytest.approx(4.1)
    assert first["bound95"] == pytest.approx(4.1 - 0.1 * 4.302653 / 3**0.5, abs=1e-5)
    assert criteria.evaluate(recorded) == recorded["criteria"]
    assert not list(Path("runs").rglob("checkpoints"))
    assert not list(configs.glob("*.tmp"))
    shown = capsys.readouterr().out
    assert "test/accuracy: kd - ce >= 3.0: passed, +4.10 [+3.85, +4.35] (3 paired seeds)" in shown
    assert "cpu_seconds: kd / ce <= 1.5: passed, 1.100 [1.100, 1.100] (3 paired seeds)" in shown
    assert "test/accuracy: to the teacher: teacher - kd: +4.90" in shown


def test_the_table_fits_a_terminal(configs, capsys):
    write(configs, metrics=["test/accuracy"], criteria=BENCH["criteria"][:1])
    bench.main(["soft"])
    lines = capsys.readouterr().out.split("\n")
    assert " ".join(lines[0].split()) == "arm test/accuracy vs ce [95 %] train s cpu-s peak MB params"
    assert " ".join(lines[2].split()) == "kd 85.10 ± 1.10 +4.10 [+3.85, +4.35] 1.5 3.3 120 14,500"
    assert "kd - ce >= 3.0: passed" in "\n".join(lines)


def test_a_failing_arm_then_the_bench_goes_on(configs, capsys):
    Path("broken").touch()
    with pytest.raises(UserError, match=r"arm 'kd' with seed 1 failed .*: kdzoo: the moon is full \(log: (.*)\)") as e:
        bench.main(["soft"])
    log = Path(str(e.value).rpartition("log: ")[2].rstrip(")"))
    assert "Traceback" in log.read_text()
    Path("broken").unlink()
    bench.main(["soft"])
    assert calls()[-3:] == ["soft_tiny 1", "plain_tiny 2", "soft_tiny 2"]
    assert len(calls()) == 7
    assert "continuing an interrupted bench: 3 of 6 runs" in capsys.readouterr().out
    bench.main(["soft"])  # a bench that came to its end starts afresh
    assert len(calls()) == 13


def test_interrupted_by_the_keyboard(configs, monkeypatch):
    run, left = subprocess.run, [0, 1, 2]

    def interrupted(*args, **how):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return run(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.main(["soft"])
    half_done = next(Path("runs/bench/soft").glob("*")) / "kd" / "1"
    (half_done / "export").mkdir(parents=True)
    assert bench.main(["soft"]) == 0
    assert len(calls()) == 6
    assert not (half_done / "export").exists()


def test_a_changed_config_starts_afresh(configs):
    Path("broken").touch()
    with pytest.raises(UserError):
        bench.main(["soft"])
    Path("broken").unlink()
    (configs / "soft_tiny.yaml").write_text("# only a comment\nmodel: {class_path: kd}\n")
    before = criteria.config_sha256(configs / "soft_bench.yaml")
    (configs / "soft_tiny.yaml").write_text("model: {class_path: kd, init_args: {x: 1}}\n")
    assert criteria.config_sha256(configs / "soft_bench.yaml") != before
    bench.main(["soft"])
    assert len(calls()) == 4 + 6


def test_a_changed_recipe_of_a_teacher_outdates_the_proof(configs):
    recipe = configs / "teacher_t.yaml"
    recipe.write_text("model: {class_path: supervised}\n")
    hashes = set()
    for named in ("teacher: teacher_t", "teacher: [{recipe: teacher_t}]", "teacher: [teacher_t, teacher_t]"):
        (configs / "soft_tiny.yaml").write_text(f"model: {{class_path: kd, init_args: {{{named}}}}}\n")
        hashes.add(criteria.config_sha256(configs / "soft_bench.yaml"))
        recipe.write_text(f"model: {{class_path: supervised}}\nseed_everything: {len(hashes)}\n")
        hashes.add(criteria.config_sha256(configs / "soft_bench.yaml"))
    assert len(hashes) == 6


def test_other_seeds_are_shown_and_not_judged(configs, capsys):
    bench.main(["soft", "--seeds", "5", "6", "--json", "out/few.json"])
    recorded = json.loads(Path("out/few.json").read_text())
    assert recorded["seeds"] == [5, 6]
    assert recorded["passed"] is None
    assert [row["passed"] for row in recorded["criteria"]] == [None, None]
    assert "kd - ce >= 3.0: not judged, +4.55" in capsys.readouterr().out
    bench.main(["soft", "--seeds", "0"])
    assert json.loads(Path("runs/bench/soft_bench.json").read_text())["arms"]["kd"]["std"]["test/accuracy"] is None
    assert not (configs / "soft_bench.json").exists()


def test_other_seeds_leave_an_interrupted_bench_alone(configs):
    Path("broken").touch()
    with pytest.raises(UserError):
        bench.main(["soft"])
    bench.main(["soft", "--seeds", "0"])
    Path("broken").unlink()
    bench.main(["soft"])
    assert len(calls()) == 4 + 2 + 3


def test_an_installed_config_is_left_alone(configs):
    assert bench.in_checkout(configs / "soft_bench.yaml")
    assert not bench.in_checkout(Path("/venv/lib/site-packages/kdzoo/configs/image/soft_bench.yaml"))
    assert not bench.in_checkout(Path("/somewhere/else/soft_bench.yaml"))


def test_keep_keeps_the_checkpoints(configs):
    bench.main(["soft", "--keep"])
    assert len(list(Path("runs").rglob("checkpoints"))) == 6


@pytest.mark.parametrize("name", ["soft_bench", "configs/image/soft_bench.yaml"])
def test_a_bench_by_its_file(configs, name):
    assert bench.main([name]) == 0
    assert (configs / "soft_bench.json").is_file()


def test_not_reached_is_an_exit_code(configs, capsys):
    write(configs, criteria=[{**BENCH["criteria"][0], "at_least": 9}])
    assert bench.main(["soft"]) == 1
    assert "kd - ce >= 9: not reached, +4.10" in capsys.readouterr().out
    assert json.loads((configs / "soft_bench.json").read_text())["passed"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": []}, "unknown key 'metric'"),
        ({"seeds": []}, "'seeds' is missing"),
        ({"seeds": [0, 0]}, "a seed twice"),
        ({"seeds": [0.5]}, "integers"),
        ({"arms": {"kd": {}}}, "arm 'kd' needs config"),
        ({"arms": {"kd": {"config": "soft_tiny", "with": {}}}}, "only config and set"),
        ({"arms": {"../x": {"config": "soft_tiny"}}}, "must be a word"),
        ({"arms": {"teacher": {"config": "soft_tiny"}}}, "built-in arm"),
        ({"arms": {"kd": {"config": "no_such_config"}}}, "no_such_config"),
        ({"criteria": [{**BENCH["criteria"][0], "left": "kdd"}]}, "unknown arm 'kdd'. Near: kd."),
        ({"criteria": [{**BENCH["criteria"][0], "metric": "test/nll"}]}, "not under metrics"),
        ({"criteria": [{**BENCH["criteria"][0], "at_most": 4}]}, "must have metric, left"),
        ({"criteria": [{**BENCH["criteria"][0], "at_least": "3"}]}, "must be a number"),
        ({"criteria": ["kd - ce"]}, "must be a mapping"),
        ({"rows": [BENCH["criteria"][0]]}, "minus and label"),
    ],
)
def test_what_is_wrong_with_a_bench_file(configs, changes, message):
    write(configs, **changes)
    with pytest.raises(UserError) as error:
        bench.main(["soft"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not calls()


def test_a_bench_file_that_is_no_yaml(configs):
    (configs / "soft_bench.yaml").write_text("arms: [")
    with pytest.raises(UserError, match="not YAML"):
        bench.main(["soft"])


def test_a_metric_that_no_run_reports(configs):
    write(configs, metrics=["test/acuracy"], criteria=[{**BENCH["criteria"][0], "metric": "test/acuracy"}], rows=[])
    with pytest.raises(UserError, match=r"arm 'ce' reports no metric 'test/acuracy'.*Near: test/accuracy"):
        bench.main(["soft"])
    assert len(calls()) == 1


def test_a_missing_teacher_costs_one_seed(configs):
    write(configs, arms={"ce": {"config": "plain_tiny"}, "ls": {"config": "plain_tiny"}}, rows=[], criteria=[
        {"metric": "test/accuracy", "left": "ls", "minus": "teacher", "at_least": -5},
    ])  # fmt: skip
    with pytest.raises(UserError, match="comparing with 'teacher'"):
        bench.main(["soft"])
    assert len(calls()) == 1  # two arms that are one run


def test_usage():
    for wrong in ([], ["a", "b", "--json", "x"], ["a", "--seeds", "1", "1"]):
        with pytest.raises(UsageError):
            bench.main(wrong)
    with pytest.raises(UserError, match="no_such_method"):
        bench.main(["no_such_method"])


def test_command():
    arm = {"config": "kd_tiny", "set": {"model.temperature": -4.5, "data.source": "embedded", "model.taps": ["a", 1]}}
    found = bench.command(arm, 3, Path("runs/x"))
    assert found[:4] == [sys.executable, "-m", "kdzoo", "fit"]
    assert found[4:10] == ["--config", "kd_tiny", "--seed_everything", "3", "--run_dir", str(Path("runs/x"))]
    assert found[12:] == ["--model.temperature=-4.5", "--data.source=embedded", '--model.taps=["a", 1]']


def test_markdown(configs, monkeypatch, capsys):
    import kdzoo.registry

    bench.main(["soft"])
    paths = {path.stem: path for path in configs.glob("*.yaml")}
    monkeypatch.setattr(kdzoo.registry, "config_files", lambda: paths)
    capsys.readouterr()
    bench.main(["--table"])
    heading, _, *_, row = capsys.readouterr().out.strip().split("\n")
    assert heading == "### image"
    assert row.startswith("| soft | ")
    assert "test/accuracy: ce 81.00 ± 1.00, kd 85.10 ± 1.10, teacher 90.00 ± 1.00" in row
    assert "kd - ce: +4.10 [+3.85, +4.35]<br>cpu_seconds: kd / ce: 1.100" in row
    assert row.endswith("| passed |")
    assert table.markdown("no_such_family") == table.markdown(None, ["other"]) == ""
    (configs / "soft_tiny.yaml").write_text("model: {class_path: kd, init_args: {x: 2}}\n")
    assert table.markdown(None).endswith("| outdated |")


def test_methods_with_the_same_runs_of_a_baseline_share_a_table(configs, monkeypatch):
    import kdzoo.registry

    bench.main(["soft"])
    recorded = json.loads((configs / "soft_bench.json").read_text())
    for gain in (1, 2):  # two more methods, of which the second is the best
        arms = copy.deepcopy(recorded["arms"])
        arms["kd"]["values"]["test/accuracy"] = [value + gain for value in arms["kd"]["values"]["test/accuracy"]]
        arms["kd"]["mean"]["test/accuracy"] += gain
        (configs / f"more{gain}_bench.json").write_text(json.dumps({**recorded, "arms": arms}))
        (configs / f"more{gain}_bench.yaml").write_text((configs / "soft_bench.yaml").read_text())
    paths = {path.stem: path for path in configs.glob("*.yaml")}
    monkeypatch.setattr(kdzoo.registry, "config_files", lambda: paths)
    heading, empty, names, _, *rows = table.markdown("image").split("\n")
    assert (heading, empty) == ("### image", "")
    assert names.startswith("| method (3 seeds) | test/accuracy | cpu_seconds | ")
    assert [row.split(" | ")[0] for row in rows] == ["| ce", "| more2", "| more1", "| soft"]
    assert "| 81.00 ± 1.00 | 3.0000 ± 0.0000 |  | 1.00 |  |  |" in rows[0]
    assert "| 87.10 ± 1.10 | 3.3000 ± 0.0000 | +6.10 [+5.85, +6.35] | 1.10 | " in rows[1]
    assert "cpu_seconds: kd / ce: 1.100" in rows[1]
    assert "to the teacher: +2.90" in rows[1]
    assert rows[1].endswith(" | passed |")


def test_without_torch():
    code = "import sys, kdzoo.proof.bench as b; b.main(['--table']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
