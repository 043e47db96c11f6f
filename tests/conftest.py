"""Fixtures for all tests: installed packages that do not exist."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

# Two workers of one thread each, and so their subprocesses: threads that wait for each other's core are slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from kdzoo import registry
from kdzoo.console import console


class Site:
    """A folder on `sys.path` into which packages are 'installed' by writing files; modules' names begin `fake_`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
        return file

    def install(self, name: str, version: str, entry_points: str, **files: str) -> None:
        """Write a dist-info; `entry_points` is the content of entry_points.txt, `files` are modules' sources."""
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        self.write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        self.write(f"{info}/entry_points.txt", entry_points)
        for module, source in files.items():
            self.write(f"{module}.py", source)
        registry._scan_path.cache_clear()

    def method(
        self, name: str, distribution: str = "kdzoo-fake", target: str = "fake_module:Fake", **files: str
    ) -> None:
        """Install a distribution that claims one method."""
        self.install(distribution, "1.0", f"[kdzoo.methods]\n{name} = {target}\n", **files)


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that runs with `--show nothing` leaves the console as it was."""
    monkeypatch.setattr(console, "quiet", False)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    registry._warn.cache_clear()
    yield Site(folder)
    for name in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[name]
    registry._scan_path.cache_clear()


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put kdzoo's own configs aside; returns a function that writes one in their place."""
    package = tmp_path / "own" / "kdzoo"
    (package / "configs").mkdir(parents=True)
    monkeypatch.setattr(registry, "__file__", str(package / "registry.py"))

    def write(path: str, text: str) -> Path:
        file = package / "configs" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write
