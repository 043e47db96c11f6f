"""The command: what it prints, how it fails, and that list and info stay quick and free of torch."""

import errno
import json
import os
import subprocess
import sys
import tomllib
import types

import pytest

import kdzoo
from kdzoo import cli, doctor, registry
from kdzoo.errors import UserError

CARD = 'CARD = Card(title="{title}", year={year}, family="{family}", arxiv="2401.00001", tags=("a", "b"))\n'


@pytest.fixture
def run(capsys):
    """Run a command; returns (exit code, stdout, stderr)."""

    def call(*argv):
        code = 0
        try:
            cli.main(argv)
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def handed_on(monkeypatch):
    """Stand-ins for what imports torch; returns the calls that they got."""
    calls = []
    for name, functions in (("lightning_cli", ("run", "export")), ("proof.bench", ("main",))):
        module = types.ModuleType(f"kdzoo.{name}")
        for function in functions:
            setattr(module, function, lambda argv, function=function: calls.append((function, argv)))
        parent, _, last = f"kdzoo.{name}".rpartition(".")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys.modules.get(parent) or __import__(parent, fromlist=["x"]), last, module, raising=False)
    return calls


def fail_with(monkeypatch, error):
    """Make `kdzoo list` raise `error`."""

    def broken(argv):
        raise error

    monkeypatch.setattr(cli, "_list", broken)


def bench_json(values, criterion, passed):
    """A recorded result as `kdzoo bench` writes it."""
    arms = {arm: {"values": {"test/accuracy": numbers}} for arm, numbers in values.items()}
    return json.dumps({"method": "fake_one", "criteria": [criterion], "passed": passed, "arms": arms})


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_with_one_line(run, argv):
    code, out, _ = run(*argv)
    assert code == 0
    for command, text in cli.COMMANDS.items():
        assert f"  {command:<12}{text}\n" in out


def test_version(run):
    assert run("--version") == (0, f"kdzoo {kdzoo.__version__}\n", "")


@pytest.mark.parametrize("command", ["list", "info", "doctor", "new-plugin"])
def test_every_own_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert out.startswith(f"usage: kdzoo {command}")


def test_an_unknown_command_gets_near_matches(run):
    assert run("lst") == (2, "", "kdzoo: no command named 'lst'. Near: list, test. All: kdzoo --help\n")


@pytest.mark.parametrize("argv", [["list", "--nonsense"], ["info"], ["info", "a", "b"], ["list", "--fam", "image"]])
def test_a_wrong_command_line_exits_with_2(run, argv):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: kdzoo ")


def test_the_other_commands_are_handed_on(run, handed_on):
    for command in ("fit", "validate", "test", "predict"):
        assert run(command, "--config", "x") == (0, "", "")
    run("bench", "kd", "--seeds", "0")
    run("export", "runs/kd")
    assert handed_on == [
        *(("run", [command, "--config", "x"]) for command in ("fit", "validate", "test", "predict")),
        ("main", ["kd", "--seeds", "0"]),
        ("export", ["runs/kd"]),
    ]


def test_the_exit_code_of_bench_is_kept(run, handed_on, monkeypatch):
    monkeypatch.setattr(sys.modules["kdzoo.proof.bench"], "main", lambda argv: 1)
    assert run("bench", "kd")[0] == 1


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_users_error_is_one_line(run, monkeypatch):
    fail_with(monkeypatch, UserError("it is wrong: do this"))
    assert run("list") == (1, "", "kdzoo: it is wrong: do this\n")


def test_debug_shows_the_traceback(run, monkeypatch):
    fail_with(monkeypatch, UserError("it is wrong"))
    monkeypatch.setenv("KDZOO_DEBUG", "1")
    code, _, err = run("list")
    assert code == 1
    assert err.startswith("Traceback")
    assert err.endswith("\nkdzoo: it is wrong\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left", "runs/x.ckpt"),
            "the disk is full while writing runs/x.ckpt: make room",
        ),
        (OSError(errno.ENOSPC, "No space left"), "the disk is full: make room and run the same command again"),
    ],
)
def test_a_full_disk_is_one_sentence(run, monkeypatch, error, message):
    fail_with(monkeypatch, error)
    code, _, err = run("list")
    assert code == 1
    assert err.startswith(f"kdzoo: {message}")
    assert err.count("\n") == 1


def test_a_full_disk_under_another_error_is_found(run, monkeypatch):
    error = RuntimeError("PytorchStreamWriter failed writing file")
    error.__cause__ = OSError(errno.ENOSPC, "No space left", "last.ckpt")
    fail_with(monkeypatch, error)
    assert "the disk is full while writing last.ckpt" in run("list")[2]


def test_other_errors_are_bugs_and_keep_their_traceback(run, monkeypatch):
    fail_with(monkeypatch, OSError(errno.EACCES, "denied", "x"))
    with pytest.raises(OSError, match="denied"):
        run("list")


def test_ctrl_c_exits_with_130(run, monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert run("list") == (130, "", "kdzoo: interrupted\n")


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "kdzoo", "list", "--json"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


# ------------------------------------------------------------------------------------------------------- quick commands


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["list"], ["list", "--json"], ["info", "kd"], ["info", "kd", "--json"]]
)
def test_no_torch_is_imported(argv):
    code = (
        "import sys; from kdzoo.cli import main; main(sys.argv[1:]); "
        "print(*{'torch', 'lightning', 'numpy', 'kdzoo.image', 'kdzoo.method'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stderr == "\n"


# ----------------------------------------------------------------------------------------------------------------- list


def test_list_shows_every_method(run):
    code, out, _ = run("list")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["name", "paper", "from", "proof"]
    rows = {line.split()[0]: line for line in lines[1:-1]}
    assert rows.keys() == registry.entries(registry.METHODS).keys()
    assert "Distilling the Knowledge in a Neural Network" in rows["kd"]
    assert f"kdzoo {registry.find(registry.METHODS, 'kd').version}" in rows["kd"]
    assert lines[-1].startswith(f"{len(rows)} methods, ")


def test_list_as_json(run):
    rows = json.loads(run("list", "--json")[1])
    assert {row["name"] for row in rows} == registry.entries(registry.METHODS).keys()
    (kd,) = (row for row in rows if row["name"] == "kd")
    assert (kd["family"], kd["distribution"], kd["arxiv"], kd["problem"]) == ("image", "kdzoo", "1503.02531", "")


def test_family(run, site):
    site.method("fake_one", fake_module=CARD.format(title="T", year=2024, family="odd"))
    rows = json.loads(run("list", "--family", "odd", "--json")[1])
    assert [row["name"] for row in rows] == ["fake_one"]
    code, _, err = run("list", "--family", "imeag")
    assert code == 1
    every = "dataset, dense, graph, image, mae, nerf, odd"
    assert err == f"kdzoo: no family named 'imeag'. Near: image, mae. All: {every}\n"


def test_a_broken_plugin_is_listed_with_its_problem(run, site):
    site.method("fake_one", fake_module="def (")
    site.method("fake_two", "kdzoo-other", "fake_other:X", fake_other="x = 1")
    site.method("fake_three", "kdzoo-third", "gone:X")
    code, out, _ = run("list")
    assert code == 0
    assert "fake_module.py cannot be parsed" in out
    assert "fake_other has no CARD" in out
    assert "there is no module gone" in out
    assert "Distilling the Knowledge" in out


def test_a_title_is_never_markup(run, site):
    site.method("fake_one", fake_module=CARD.format(title="[red]A [/b] :smile:", year=2024, family="odd"))
    assert "[red]A [/b] :smile:" in run("list")[1]


def test_problems_are_pointed_out(run, site):
    site.method("Fake")
    assert run("list")[2].endswith("problems with what is installed: kdzoo doctor\n")


# ---------------------------------------------------------------------------------------------------------------- proof


def proof(site, recorded):
    site.method("fake_one", target="fake_package.mod:X")
    site.write("fake_package/__init__.py", "")
    site.write("fake_package/mod.py", CARD.format(title="T", year=2024, family="odd"))
    site.write("fake_package/configs/fake_one_bench.yaml", "{}")
    if recorded is not None:
        site.write("fake_package/configs/fake_one_bench.json", recorded)


VALUES = {"kd": [80.0, 82.0, 81.0], "ce": [76.0, 77.0, 76.5], "nan": [None, 1.0, 1.0]}
DIFFERENCE = {"metric": "test/accuracy", "left": "kd", "minus": "ce", "at_least": 3.0, "value": 4.5}


@pytest.mark.parametrize(
    ("criterion", "passed", "text", "verdict"),
    [
        (DIFFERENCE, True, "+4.5 ± 0.5 accuracy over ce", "passed"),
        (DIFFERENCE, False, "+4.5 ± 0.5 accuracy over ce", "not reached"),
        (DIFFERENCE, None, "+4.5 ± 0.5 accuracy over ce", ""),
        ({**DIFFERENCE, "value": -0.012}, True, "-0.012 ± 0.500 accuracy over ce", "passed"),
        ({**DIFFERENCE, "value": None}, False, "accuracy is not finite", "not reached"),
        (
            {"metric": "test/accuracy", "left": "kd", "ratio_to": "ce", "value": 1.0588},
            True,
            "1.06 x accuracy of ce",
            "passed",
        ),
    ],
)
def test_the_recorded_proof_is_shown(run, site, criterion, passed, text, verdict):
    proof(site, bench_json(VALUES, criterion, passed))
    out = run("list", "--family", "odd")[1].splitlines()
    assert out[1].split("kdzoo-fake 1.0")[1].split(text)[1].strip() == verdict
    reached = f"1 methods, {int(passed is True)} proofs passed, {int(passed is False)} not reached"
    assert out[2] == reached + (" (kdzoo info fake_one)" if passed is False else "")
    assert f"proof     {text}  {verdict}".rstrip() in run("info", "fake_one")[1]
    assert json.loads(run("list", "--family", "odd", "--json")[1])[0]["proof"]["passed"] is passed


def test_one_seed_has_no_deviation(run, site):
    proof(site, bench_json({"kd": [80.0], "ce": [75.5]}, DIFFERENCE, None))
    assert "+4.5 accuracy over ce" in run("info", "fake_one")[1]


def test_no_proof_is_a_dash(run, site):
    proof(site, None)
    assert run("list", "--family", "odd")[1].splitlines()[1].endswith("kdzoo-fake 1.0  -        ".rstrip() + "      ")


@pytest.mark.parametrize(
    "recorded",
    [
        "",
        "{",
        "[]",
        "3",
        '{"passed": true, "criteria": []}',
        '{"criteria": [{"metric": "m", "value": 1, "minus": "ce"}], "passed": true}',
        bench_json({"kd": [1.0]}, DIFFERENCE, True),
        bench_json({"kd": [None, 1.0], "ce": [1.0, 2.0]}, DIFFERENCE, True),
        bench_json(VALUES, {**DIFFERENCE, "value": "4.5"}, True),
        100_000 * "[",
    ],
)
def test_a_damaged_record_spoils_nothing(run, site, recorded):
    proof(site, recorded)
    code, out, _ = run("list")
    assert code == 0
    assert "fake_one_bench.json cannot be read: " in out
    assert "Distilling the Knowledge" in out


def test_a_plugin_cannot_prove_a_method_of_another_distribution(run, site, own_configs):
    proof(site, None)
    site.write("fake_package/configs/kd_bench.yaml", "{}")
    site.write("fake_package/configs/kd_bench.json", bench_json(VALUES, DIFFERENCE, True))
    rows = json.loads(run("list", "--json")[1])
    assert {row["proof"]["text"] for row in rows if row["name"] == "kd"} == {"-"}


# ----------------------------------------------------------------------------------------------------------------- info


def test_info_shows_card_arguments_and_configs(run):
    code, out, _ = run("info", "kd")
    assert code == 0
    assert out.startswith("kd  Distilling the Knowledge in a Neural Network (2015)\n")
    for part in ("1503.02531", "temperature             float = 4.0", "kd_tiny", "proof"):
        assert part in out
    assert "dkd_tiny" not in out


def test_info_as_json(run):
    about = json.loads(run("info", "kd@kdzoo", "--json")[1])
    assert about["class"] == "kdzoo.image.kd.KD"
    assert about["card"]["tags"] == ["logits", "label-free"]
    assert {"name": "temperature", "annotation": "float", "default": "4.0"} in about["arguments"]
    assert about["configs"]["kd_tiny"].endswith("kd_tiny.yaml")


def test_info_on_data(run):
    code, out, _ = run("info", "fashion_mnist")
    assert code == 0
    assert "kdzoo.datamodules.fashion_mnist.FashionMNIST" in out
    assert "kd_tiny" in out
    assert "proof" not in out


def test_info_on_something_unknown(run):
    assert run("info", "kdd") == (1, "", "kdzoo: no method named 'kdd'. Near: kidd, kd, rkd. All: kdzoo list\n")
    assert run("info", "fashion_mnst")[2].startswith("kdzoo: no data module named 'fashion_mnst'. Near: fashion_mnist.")


def test_info_finds_configs_by_every_spelling(run, site):
    proof(site, None)
    for stem, text in {
        "fake_bare": "model: fake_one",
        "fake_path": "model: {class_path: fake_package.mod.X}",
        "fake_full": "model: {class_path: fake_one@kdzoo-fake}",
        "fake_other": "model: {class_path: kd}  # fake_one",
        "fake_list": "[fake_one]",
        "fake_none": "model: null  # fake_one",
        "fake_damaged": "model: [fake_one",
        "fake_hostile": "model: !!python/object/apply:os.system [echo fake_one]",
    }.items():
        site.write(f"fake_package/configs/{stem}.yaml", text)
    about = json.loads(run("info", "fake_one", "--json")[1])
    assert about["configs"].keys() == {"fake_bare", "fake_path", "fake_full"}


def test_info_of_a_plugin_whose_import_fails(run, site):
    source = "import no_such\n" + CARD.format(title="T", year=2024, family="odd") + "class Fake(no_such.X): ...\n"
    site.method("fake_one", fake_module=source)
    code, out, _ = run("info", "fake_one")
    assert code == 0
    assert out.startswith("fake_one  T (2024)\n")


# --------------------------------------------------------------------------------------------------------------- doctor


@pytest.fixture
def only_plugins(monkeypatch):
    """Leave kdzoo's own classes out: loading them takes seconds."""
    entries = registry.entries
    monkeypatch.setattr(
        registry, "entries", lambda group: {n: e for n, e in entries(group).items() if e.distribution != "kdzoo"}
    )
    stale = doctor._stale
    monkeypatch.setattr(doctor, "_stale", lambda dist, modules: stale(dist, modules) if dist != "kdzoo" else ())


def test_doctor_explains_broken_plugins(run, site, only_plugins):
    site.method("fake_one", fake_module="raise SystemExit(0)")
    site.method("fake_good", "kdzoo-good", "fake_good:X", fake_good="from kdzoo.method import Method as X")
    site.method("Fake-Name", "kdzoo-name")
    code, out, _ = run("doctor")
    assert code == 1
    assert "broken    fake_one  (kdzoo-fake 1.0): method 'fake_one' of kdzoo-fake 1.0 cannot be loaded: " in out
    assert "ok        fake_good  (kdzoo-good 1.0)" in out
    assert "problem   entry point 'Fake-Name'" in out
    assert "\n1 broken, " in out


def test_doctor_does_not_wait_for_ever(run, site, only_plugins, monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    site.method("fake_one", fake_module="print('hello')\nwhile True: pass")
    code, out, _ = run("doctor")
    assert code == 1
    assert "broken    fake_one  (kdzoo-fake 1.0)" in out
    assert "not done after 0.2 seconds" in out


def test_a_plugin_that_prints_or_hangs_is_not_imported_by_others(run, site):
    site.method("fake_one", fake_module="print('noise')\nwhile True: pass")
    code, out, _ = run("list", "--json")
    assert code == 0
    assert "fake_one" in {row["name"] for row in json.loads(out)}
    code, out, _ = run("info", "fake_one", "--json")
    assert code == 0
    assert json.loads(out)["name"] == "fake_one"
    registry.find(registry.METHODS, "kd").load()
    assert "fake_module" not in sys.modules


def test_doctor_says_what_runs_where(run, only_plugins, monkeypatch, tmp_path):
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path / "not" / "there"))
    code, out, _ = run("doctor")
    assert (code, out.splitlines()[-1]) == (0, "all is well")
    assert sys.executable in out
    assert f"{tmp_path}/not/there: " in out
    assert "GB free" in out
    for package in ("kdzoo", "torch", "lightning", "jsonargparse", "timm", "diffusers"):
        assert f"\n{package} " in out


@pytest.mark.parametrize("layout", ["fake_package", "src/fake_package"])
def test_doctor_finds_stale_metadata(run, site, only_plugins, monkeypatch, tmp_path, layout):
    checkout = type(site)(tmp_path / "checkout")
    site.method("fake_one", target="fake_package.mod:X")
    checkout.write(f"{layout}/__init__.py", "")
    checkout.write(f"{layout}/mod.py", "from kdzoo.method import Method as X")
    points = '[project]\nname = "KDZOO_fake"\n[project.entry-points."kdzoo.methods"]\nfake_one = "fake_package.mod:X"\n'
    project = checkout.write("pyproject.toml", points)
    monkeypatch.setattr(sys, "path", [*sys.path, str((checkout.folder / layout).parent)])
    assert run("doctor")[0] == 0
    project.write_text(points + 'fake_new = "fake_package.new:Y"\n')
    code, out, _ = run("doctor")
    assert code == 1
    assert "installed metadata of kdzoo-fake is not that of its pyproject.toml (fake_new): pip install -e " in out
    assert f"{checkout.folder} --no-deps" in out


def test_doctor_finds_version_clashes(run, site, only_plugins):
    site.method("fake_one", fake_module="from kdzoo.method import Method as Fake")
    needs = [
        "torch>=99",
        "no-such-package",
        "pyyaml",
        "other; extra == 'all'",
        "rich<1; python_version < '3'",
        "not ( valid",
    ]
    metadata = "".join(f"Requires-Dist: {need}\n" for need in needs)
    site.write(
        "kdzoo_fake-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: kdzoo-fake\nVersion: 1.0\n{metadata}"
    )
    code, out, _ = run("doctor")
    assert code == 1
    assert "kdzoo-fake needs torch>=99, torch " in out
    assert "kdzoo-fake needs no-such-package, it is not installed: pip install 'no-such-package'" in out
    assert "'not ( valid'" in out
    assert out.count("problem   ") == 3


# ----------------------------------------------------------------------------------------------------------- new-plugin


def test_new_plugin_writes_a_package(run, tmp_path):
    code, out, _ = run("new-plugin", "my_method", "--path", str(tmp_path))
    folder = tmp_path / "kdzoo-my_method"
    assert code == 0
    assert str(folder) in out
    assert [path.name for path in tmp_path.iterdir()] == ["kdzoo-my_method"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "kdzoo_my_method/__init__.py",
        "kdzoo_my_method/configs/my_method_tiny.yaml",
        "kdzoo_my_method/my_method.py",
        "pyproject.toml",
        "tests/test_my_method.py",
    ]
    for path in (path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text()
        assert "$" not in text
        assert "NAME" not in text.replace("NAME_bench", "")
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["kdzoo.methods"]
    assert points == {"my_method": "kdzoo_my_method.my_method:MyMethod"}


def test_the_new_plugin_is_a_method_that_conforms(run, site, tmp_path, monkeypatch):
    """Not installed by pip, but found as if: its folder is on the path, with the metadata that pip would write."""
    run("new-plugin", "mine", "--path", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "kdzoo-mine"), *sys.path])
    site.method("mine", "kdzoo-mine", "kdzoo_mine.mine:MINE")
    code, out, _ = run("info", "mine")
    assert code == 0
    assert "mine_tiny" in out
    from kdzoo.testing import check_method

    try:
        check_method("mine")
        namespace = {}
        exec((tmp_path / "kdzoo-mine/tests/test_mine.py").read_text(), namespace)
        namespace["test_the_teachers_own_logits_cost_nothing"]()
    finally:
        for name in [name for name in sys.modules if name.startswith("kdzoo_mine")]:
            del sys.modules[name]


def test_ruff_is_content_with_the_new_plugin(run, tmp_path):
    pytest.importorskip("ruff")
    run("new-plugin", "mine", "--path", str(tmp_path))
    for arguments in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "kdzoo-mine")
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "Srrl",
        "1mine",
        "s-r",
        "s r",
        "",
        "_s",
        "s_",
        "../s",
        "s/r",
        "class",
        "false",
        "card",
        "classifier",
        "säge",
        "$name",
        "s\n",
    ],
)
def test_new_plugin_refuses_bad_names(run, tmp_path, name):
    code, _, err = run("new-plugin", "--path", str(tmp_path), "--", name)
    assert code == 1
    assert "cannot name a method" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["kd", "fitnets"])
def test_new_plugin_refuses_names_that_exist(run, tmp_path, name):
    code, _, err = run("new-plugin", name, "--path", str(tmp_path))
    assert code == 1
    assert err == f"kdzoo: a method '{name}' is installed already (kdzoo info {name}): take another name\n"


def test_new_plugin_overwrites_nothing(run, tmp_path):
    (tmp_path / "kdzoo-mine").symlink_to("nowhere")
    code, _, err = run("new-plugin", "mine", "--path", str(tmp_path))
    assert code == 1
    assert "exists already" in err


def test_new_plugin_needs_a_folder_and_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    code, _, err = run("new-plugin", "mine", "--path", str(tmp_path / "gone"))
    assert code == 1
    assert "cannot be written" in err
    monkeypatch.setattr(
        cli.Path, "rename", lambda self, to: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full", str(to)))
    )
    code, _, err = run("new-plugin", "mine", "--path", str(tmp_path))
    assert code == 1
    assert err.startswith("kdzoo: the disk is full while writing ")
    assert not list(tmp_path.iterdir())
