"""The registry: who owns a name, what a broken plugin can do (nothing to others), and where configs are found."""

import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from kdzoo import registry
from kdzoo.card import Card, read_card
from kdzoo.errors import UserError
from kdzoo.registry import DATA, METHODS, Entry, entries, find, find_config

ROOT = Path(__file__).parent.parent


def other_problems():
    """Problems that the environment itself has are not this test's."""
    return [line for line in registry.problems() if "fake" in line or "entrypoints failed" in line]


# ------------------------------------------------------------------------------------------------------------- kdzoo's


@pytest.mark.parametrize("group", [METHODS, DATA])
def test_the_installed_metadata_is_that_of_pyproject(group):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"].get(group, {})
    installed = {e.name: f"{e.module}:{e.attribute}" for e in entries(group).values() if e.distribution == "kdzoo"}
    assert installed == declared, "run: pip install -e . --no-deps"


def test_own_names_and_aliases():
    for group in (METHODS, DATA):
        for name, entry in entries(group).items():
            assert registry.NAME.fullmatch(entry.name), name
    for alias, name in registry.ALIASES.items():
        assert alias not in entries(METHODS)
        assert find(METHODS, alias) == find(METHODS, f"{alias}@kdzoo") == find(METHODS, name)


def test_every_own_method_has_a_card():
    for entry in entries(METHODS).values():
        if entry.distribution == "kdzoo":
            source = read_card(entry)
            assert source.card
            assert source.docstring


def test_an_entry_says_where_it_comes_from():
    entry = find(METHODS, "kd")
    assert entry == Entry("kd", METHODS, "kdzoo.image.kd", "KD", "kdzoo", entry.version)
    assert (entry.path, entry.origin) == ("kdzoo.image.kd.KD", f"kdzoo {entry.version}")


# ---------------------------------------------------------------------------------------------------------------- names


def test_a_plugin_appears_with_its_distribution_and_version(site):
    site.install("KDZoo_Fake.Thing", "2.1", "[kdzoo.methods]\nfake_one = fake_module:Fake [extra]\n")
    entry = find(METHODS, "fake_one")
    assert (entry.distribution, entry.version, entry.path) == ("kdzoo-fake-thing", "2.1", "fake_module.Fake")
    assert find(METHODS, "fake_one@kdzoo_fake.thing") is entry
    assert find(METHODS, "fake_module.Fake") is entry
    assert "fake_module" not in sys.modules


@pytest.mark.parametrize("text", ["dkdd", "DKD", "dkd-", "kdzoo.image.dkd.DKDD"])
def test_an_unknown_name_gets_near_matches(text):
    with pytest.raises(UserError, match=rf"^no method named '{text}'. Near: dkd.*\. All: kdzoo list$"):
        find(METHODS, text)


def test_unknown_data_lists_all():
    with pytest.raises(UserError, match=r"no data module named 'qqq'. All: blender_scene, .*fashion_mnist, "):
        find(DATA, "qqq")


@pytest.mark.parametrize("text", ["", "@", "@kdzoo", "kd@@kdzoo", "torch.nn.Linear", "os.system", "../kd", "kd\n"])
def test_what_is_not_registered_is_an_error(text):
    with pytest.raises(UserError):
        find(METHODS, text)


def test_an_unknown_distribution_names_the_known():
    with pytest.raises(UserError, match="no method 'kd' in a distribution 'elsewhere': it comes from kdzoo "):
        find(METHODS, "kd@elsewhere")


def test_kdzoo_keeps_its_bare_name_with_one_warning_line(site, capsys):
    site.method("kd", "kdzoo-dup", "fake_module:Dup")
    assert capsys.readouterr().err == ""
    assert find(METHODS, "kd").distribution == find(METHODS, "kd").distribution == "kdzoo"
    assert capsys.readouterr().err == "kdzoo: warning: method 'kd' is kdzoo's own; say kd@kdzoo-dup for the other\n"
    assert find(METHODS, "kd@kdzoo-dup").path == "fake_module.Dup"
    assert find(METHODS, "kd@kdzoo").path == "kdzoo.image.kd.KD"
    assert {"kd", "kd@kdzoo-dup"} <= entries(METHODS).keys()
    assert capsys.readouterr().err == ""


def test_two_plugins_on_one_name_are_an_error_naming_both(site):
    site.method("fake_one", "kdzoo-a", "fake_a:A")
    site.method("fake_one", "kdzoo-b", "fake_b:B")
    with pytest.raises(UserError) as error:
        find(METHODS, "fake_one")
    for part in ("kdzoo-a 1.0", "kdzoo-b 1.0", "fake_one@kdzoo-a", "fake_one@kdzoo-b"):
        assert part in str(error.value)
    assert find(METHODS, "fake_one@kdzoo-b").path == "fake_b.B"
    assert {name for name in entries(METHODS) if "fake" in name} == {"fake_one@kdzoo-a", "fake_one@kdzoo-b"}


def test_the_same_target_twice_is_no_conflict(site, capsys):
    site.method("fake_one", "kdzoo-a", "fake_a:A")
    site.method("fake_one", "kdzoo-b", "fake_a:A")
    site.method("kd", "kdzoo-c", "kdzoo.image.kd:KD")
    assert find(METHODS, "fake_one").path == "fake_a.A"
    assert find(METHODS, "fake_one@kdzoo-b").distribution == "kdzoo-b"
    assert find(METHODS, "kd").distribution == "kdzoo"
    assert [name for name in entries(METHODS) if "fake" in name or "@" in name] == ["fake_one"]
    assert capsys.readouterr().err == ""


def test_a_plugin_may_take_the_name_of_an_alias(site):
    site.method("fitnets", target="fake_module:Mine")
    assert find(METHODS, "fitnets").path == "fake_module.Mine"


# ------------------------------------------------------------------------------------------------------ broken metadata


@pytest.mark.parametrize("name", ["Fake", "fake-one", "fake.one", "fake one", "fäke", "fake@x"])
def test_a_name_of_other_letters_is_skipped(site, name):
    site.method(name)
    assert name not in entries(METHODS)
    assert any("kdzoo-fake 1.0 is skipped: a name is made of" in line for line in other_problems())
    find(METHODS, "kd")


@pytest.mark.parametrize(
    "target", ["not a spec", "fake_module", "fake_module:", ":Fake", "a:b:c", "", "a%b:C", "50%(x)s"]
)
def test_a_malformed_target_is_skipped_and_its_owner_named(site, target):
    site.method("fake_one", target=target)
    assert "fake_one" not in entries(METHODS)
    assert any("'fake_one' (kdzoo.methods) of kdzoo-fake 1.0 is skipped" in line for line in other_problems())
    find(METHODS, "kd")


def test_a_foreign_package_can_break_entrypoints_but_not_the_registry(site):
    site.install("unrelated", "1.0", "[console_scripts]\nx = a:b\nx = a:c\n")
    site.method("fake_one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(METHODS, "fake_one").origin == "kdzoo-fake 1.0"
    assert find(METHODS, "kd").distribution == "kdzoo"
    (line,) = other_problems()
    assert line.startswith("entrypoints failed, importlib.metadata is used instead: DuplicateOptionError")
    assert "unrelated-1.0.dist-info" in line


@pytest.mark.parametrize("content", [b"[kdzoo.methods]\nno equals sign\n", b"\xff\xfe\x00[", b"x = y\n", b""])
def test_unreadable_metadata_of_one_package_stays_its_own_problem(site, content):
    site.install("fake-broken", "1.0", "")
    (site.folder / "fake_broken-1.0.dist-info/entry_points.txt").write_bytes(content)
    site.method("fake_one")
    assert find(METHODS, "fake_one").origin == "kdzoo-fake 1.0"
    assert find(METHODS, "kd").distribution == "kdzoo"


def test_a_name_declared_twice_in_one_distribution_counts_once(site):
    site.install("kdzoo-fake", "1.0", "[kdzoo.methods]\nfake_one = fake_a:A\nfake_one = fake_b:B\n")
    assert find(METHODS, "fake_one").distribution == "kdzoo-fake"
    assert [name for name in entries(METHODS) if "fake" in name] == ["fake_one"]


def test_a_copy_further_down_the_path_is_not_seen(site, tmp_path, monkeypatch):
    site.install("kdzoo-fake", "2.0", "[kdzoo.methods]\nfake_new = fake_module:Fake\n")
    old = type(site)(tmp_path / "old")
    old.install("KDZOO.fake", "1.0", "[kdzoo.methods]\nfake_old = fake_module:Fake\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "old")])
    assert {name: e.version for name, e in entries(METHODS).items() if "fake" in name} == {"fake_new": "2.0"}


def test_an_egg_info_without_a_version_counts(site):
    site.write("kdzoo_fake.egg-info/entry_points.txt", "[kdzoo.methods]\nfake_one = fake_module:Fake\n")
    assert find(METHODS, "fake_one").origin == "kdzoo-fake unknown"


def test_a_conda_like_editable_install_is_seen(site, tmp_path):
    """The dist-info is on the path, the source elsewhere, behind a finder as setuptools writes it."""
    site.method("fake_one", target="fake_editable.part:Fake")
    source = tmp_path / "checkout" / "src" / "fake_editable"
    (source / "configs").mkdir(parents=True)
    (source / "__init__.py").write_text("raise ImportError('never imported')")
    (source / "part.py").write_text('CARD = Card(title="T", year=2020, family="f")\nclass Fake: ...\n')
    (source / "configs" / "fake_tiny.yaml").write_text("{}")

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            from importlib.util import spec_from_file_location

            if name == "fake_editable":
                return spec_from_file_location(name, source / "__init__.py", submodule_search_locations=[str(source)])
            return None

    sys.meta_path.append(Finder)
    try:
        assert read_card(find(METHODS, "fake_one")).card == Card(title="T", year=2020, family="f")
        assert find_config("fake_tiny") == source / "configs" / "fake_tiny.yaml"
    finally:
        sys.meta_path.remove(Finder)
    assert "fake_editable" not in sys.modules


# -------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise ImportError('libfoo.so.3')", "importing fake_module failed: ImportError: libfoo.so.3"),
        (
            "import no_such_package",
            "importing fake_module failed: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("raise SystemExit(3)", "importing fake_module failed: SystemExit: 3"),
        ("class Odd(BaseException): ...\nraise Odd", "importing fake_module failed: Odd"),
        ("def (", "importing fake_module failed: SyntaxError: invalid syntax"),
        ("raise ValueError('two\\nlines' + 400 * 'x')", "importing fake_module failed: ValueError: two lines"),
        (
            "x = 1",
            "looking up Fake in fake_module failed: AttributeError: module 'fake_module' has no attribute 'Fake'",
        ),
        ("class Fake: ...", "checking fake_module.Fake failed: TypeError: it is not a subclass of kdzoo.method.Method"),
        ("Fake = 3", "checking fake_module.Fake failed: TypeError: issubclass() arg 1 must be a class"),
    ],
)
def test_what_cannot_be_loaded_is_explained_in_one_sentence(site, source, cause):
    site.method("fake_one", fake_module=source)
    with pytest.raises(UserError) as error:
        find(METHODS, "fake_one").load()
    message = str(error.value)
    assert message.startswith(f"method 'fake_one' of kdzoo-fake 1.0 cannot be loaded: {cause}")
    assert message.endswith(". Try: pip install -U kdzoo-fake, or kdzoo doctor")
    assert len(message) < 600
    assert "\n" not in message
    assert error.value.__cause__ is not None


def test_a_missing_module_is_explained(site):
    site.method("fake_one")
    with pytest.raises(UserError, match="importing fake_module failed: ModuleNotFoundError"):
        find(METHODS, "fake_one").load()


def test_ctrl_c_during_an_import_stays_ctrl_c(site):
    site.method("fake_one", fake_module="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        find(METHODS, "fake_one").load()


def test_loading_imports_that_module_alone(site):
    source = "from {} import {} as Base\nclass Fake:\n    class Inner(Base): ...\n"
    site.method("fake_one", target="fake_module:Fake.Inner", fake_module=source.format("kdzoo.method", "Method"))
    site.method("fake_two", "kdzoo-other", "fake_other:Other", fake_other="raise RuntimeError('imported')")
    site.install("kdzoo-data", "1.0", "[kdzoo.data]\nfake_data = fake_data:Fake.Inner\n")
    site.write("fake_data.py", source.format("lightning", "LightningDataModule"))
    assert find(METHODS, "fake_one").load().__qualname__ == "Fake.Inner"
    assert find(DATA, "fake_data").load().__module__ == "fake_data"
    assert "fake_other" not in sys.modules


# -------------------------------------------------------------------------------------------------------------- configs


def test_own_configs_are_found_by_stem_and_by_path():
    path = find_config("kd_tiny")
    assert path.name == "kd_tiny.yaml"
    assert find_config(str(path)) == path
    assert registry.config_files()["kd_tiny"] == registry.config_files("kdzoo")["kd_tiny"] == path


def test_own_config_stems_are_unique():
    assert not [line for line in registry.problems() if line.startswith("config ")]


def test_a_wheel_carries_its_configs_inside(own_configs):
    path = own_configs("image/mine.yaml", "{}")
    assert find_config("mine") == path


def test_plugin_configs(site, own_configs):
    own = own_configs("image/shared.yaml", "{}")
    for letter in "ab":
        site.method(f"fake_{letter}", f"kdzoo-{letter}", f"fake_{letter}.sub.mod:X")
        site.write(f"fake_{letter}/__init__.py", "raise ImportError('never imported')")
        for stem in ("shared", "both", f"only_{letter}"):
            site.write(f"fake_{letter}/configs/deep/{stem}.yaml", "{}")
    assert find_config("shared") == own
    assert find_config("only_a") == site.folder / "fake_a/configs/deep/only_a.yaml"
    assert registry.config_files().keys() == {"shared", "only_a", "only_b"}
    assert registry.config_files("kdzoo-a").keys() == {"shared", "both", "only_a"}
    with pytest.raises(UserError, match=r"config 'both' is .*fake_a.*both.yaml and .*fake_b.*both.yaml: give the path"):
        find_config("both")
    assert any(line.startswith("config 'both' is ") for line in registry.problems())


def test_packages_that_are_modules_missing_or_broken_have_no_configs(site):
    site.method("fake_one", fake_module="")
    site.method("fake_two", "kdzoo-gone", "gone:X")
    site.method("fake_three", "kdzoo-main", "__main__:X")
    assert registry.config_files("kdzoo-fake") == registry.config_files("kdzoo-gone") == {}
    assert find_config("kd_tiny")


def test_a_path_wins_if_it_looks_like_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kd_tiny").write_text("{}")  # a file without suffix is not asked for
    (tmp_path / "mine.yml").write_text("{}")
    assert find_config("kd_tiny").name == "kd_tiny.yaml"
    assert find_config("mine.yml") == Path("mine.yml")
    assert find_config("./kd_tiny") == Path("kd_tiny")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd_tinyy", r"no config named 'kd_tinyy'. Near: kd_tiny, .*\. All: kdzoo list"),
        ("kd_tiny.yaml", r"config file 'kd_tiny.yaml' does not exist. Near: kd_tiny"),
        ("/", "config file '/' is a folder, not a config file"),
        ("../../etc/no_such", "does not exist"),
        ("image/kd_tiny", "does not exist. Near: kd_tiny"),
        ("~no_such_user/x.yaml", "does not exist"),
        ("a\0b/c.yaml", "does not exist"),
        ("..", "'..' is neither the name of a config"),
        ("", "'' is neither the name of a config"),
        ("kd tiny", "neither"),
        ("kd_tiny\n", "neither"),
        ("*", "neither"),
        ("~", "neither"),
    ],
)
def test_what_is_no_config_is_an_error(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_config(text)


# ---------------------------------------------------------------------------------------------------------------- cards


def card_of(site, source, target="fake_module:Fake"):
    site.method("fake_one", target=target, fake_module=source)
    return read_card(find(METHODS, "fake_one"))


def test_a_card_is_read_from_source_that_cannot_be_imported(site):
    source = card_of(
        site,
        '''\
        """One sentence.

        More.
        """
        import no_such_package
        CARD: Card = kdzoo.Card(title="A " "B", arxiv="1", year=2020, family="f", tags=("x", "y"))

        class Other:
            def __init__(self, wrong): ...

        class Fake(no_such_package.Base):
            def __init__(self, student: str, /, teacher: "str | None", *, beta: float = 1 / 12, optim=Optim()): ...
        ''',
    )
    assert source.card == Card(title="A B", arxiv="1", year=2020, family="f", tags=("x", "y"))
    assert source.docstring == "One sentence.\n\nMore."
    assert [tuple(argument) for argument in source.arguments] == [
        ("student", "str", None),
        ("teacher", "'str | None'", None),
        ("beta", "float", "1 / 12"),
        ("optim", "", "Optim()"),
    ]
    assert "fake_module" not in sys.modules


@pytest.mark.parametrize("line", ["x = 1", "class Fake: ...", "Fake = make()", "class Fake:\n    __init__ = other"])
def test_no_card_and_no_arguments_are_no_error(site, line):
    source = card_of(site, line)
    assert (source.card, source.arguments) == (None, ())


@pytest.mark.parametrize(
    "card",
    [
        'Card(title=name, year=2020, family="f")',
        'Card(title=f"{x}", year=2020, family="f")',
        'Card("positional", year=2020, family="f")',
        "Card(**fields)",
        'Card(title="no family", year=2020)',
        'Card(title="a", year="2020", family="f")',
        'Card(title=["a"], year=2020, family="f")',
        'Card(title="a", year=2020, family="f", tags="logits")',
        'Card(title="a", year=2020, family="f", tags=(1,))',
        'Card(title="a", year=2020, family="f", unknown=1)',
        '{"title": "a"}',
        "make_card()",
        "3",
    ],
)
def test_a_card_that_is_no_literal_is_explained(site, card):
    with pytest.raises(UserError, match=r"'fake_one' of kdzoo-fake 1.0: .*fake_module.py"):
        card_of(site, f"\nCARD = {card}\nclass Fake: ...\n")


@pytest.mark.parametrize("source", ["def (", "x = '", "x = " + 5000 * "("])
def test_source_that_cannot_be_parsed_is_explained(site, source):
    with pytest.raises(UserError, match=r"'fake_one' of kdzoo-fake 1.0: .*fake_module.py cannot be parsed: "):
        card_of(site, source)


def test_bytes_that_are_no_source_are_explained(site):
    site.method("fake_one")
    (site.folder / "fake_module.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"'fake_one' of kdzoo-fake 1.0: "):
        read_card(find(METHODS, "fake_one"))


@pytest.mark.parametrize("target", ["gone:X", "fake_module.gone:X", "zlib:X", "sys:X"])
def test_a_module_without_source_is_explained(site, target):
    with pytest.raises(UserError, match=r"'fake_one' of kdzoo-fake 1.0: "):
        card_of(site, "", target)


def test_a_class_is_followed_to_the_module_that_defines_it(site):
    site.method("fake_one", target="fake_package:Public")
    site.write("fake_package/__init__.py", "from .part import Exported as Public\n")
    site.write("fake_package/part/__init__.py", "from ..deep.file import Real as Exported\n")
    site.write(
        "fake_package/deep/file.py",  # a folder without __init__.py
        'CARD = Card(title="T", year=2020, family="f")\nclass Real:\n    def __init__(self, a=1): ...\n',
    )
    source = read_card(find(METHODS, "fake_one"))
    assert source.file.endswith("file.py")
    assert source.card
    assert source.arguments == (("a", "", "1"),)
    assert "fake_package" not in sys.modules


def test_an_import_in_a_circle_ends(site):
    with pytest.raises(UserError, match="in a circle"):
        card_of(site, "from fake_module import Fake\n")
