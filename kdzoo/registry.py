"""Finds methods, data modules and configs, kdzoo's own and every plugin's, and imports none of them.

Entry points are the only registry. The package `entrypoints` reads them, because importing it costs a quarter of
`importlib.metadata`; that one steps in where `entrypoints` fails. Whatever is wrong with one distribution stays its own
problem: it is skipped, and `problems()` says why.
"""

import functools
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import entrypoints

from kdzoo.errors import UserError, near

METHODS = "kdzoo.methods"
DATA = "kdzoo.data"
REDUCERS = "kdzoo.reducers"
GROUPS = (METHODS, DATA, REDUCERS)
RECIPE = "recipe:"  # before the name of a config, where a file of weights could stand
OWN = "kdzoo"  # the distribution that keeps its bare names, whoever else claims them
ALIASES = {"fitnets": "fitnet"}  # other spelling -> registered name; never listed
NAME = re.compile(r"[a-z0-9_]+")

_KINDS = {METHODS: "method", DATA: "data module", REDUCERS: "reducer"}
_BASES = {
    METHODS: ("kdzoo.method", "Method"),
    DATA: ("lightning.pytorch", "LightningDataModule"),
    REDUCERS: ("kdzoo.graph.reducers", "Reducer"),
}
_TARGET = re.compile(r"(\w+(?:\.\w+)*)\s*:\s*(\w+(?:\.\w+)*)\s*(?:\[.*\])?")


@dataclass(frozen=True)
class Entry:
    """One entry point: a name, the class that it stands for, and the distribution that says so."""

    name: str
    group: str
    module: str
    attribute: str
    distribution: str  # normalised: lower case, single dashes
    version: str

    @property
    def path(self) -> str:
        """The class path, `kdzoo.image.kd.KD`."""
        return f"{self.module}.{self.attribute}"

    @property
    def origin(self) -> str:
        """Distribution and version, `kdzoo 0.1.0`."""
        return f"{self.distribution} {self.version}"

    def load(self) -> type:
        """Import the module (no other method's) and return the class.

        Raises:
            UserError: the module cannot be imported, lacks the class, or the class is not of the group's kind.
        """
        doing = f"importing {self.module}"
        try:
            target: Any = importlib.import_module(self.module)
            doing = f"looking up {self.attribute} in {self.module}"
            for part in self.attribute.split("."):
                target = getattr(target, part)
            module, base = _BASES[self.group]
            doing = f"checking {self.path}"
            if not issubclass(target, getattr(importlib.import_module(module), base)):
                raise TypeError(f"it is not a subclass of {module}.{base}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may call sys.exit() or worse while it is imported
            who = f"{_KINDS[self.group]} {self.name!r} of {self.origin}"
            cure = f"Try: pip install -U {self.distribution}, or kdzoo doctor"
            raise UserError(f"{who} cannot be loaded: {doing} failed: {_cause(error)}. {cure}") from error
        return target


def entries(group: str) -> dict[str, Entry]:
    """Everything registered in `group`, by the shortest name that `find` takes: bare, or `name@distribution`."""
    found = {}
    for name, claims in _scan(group)[0].items():
        owner = _owner(claims)
        for entry in claims:
            if entry is owner:
                found[name] = entry
            elif owner is None or entry.path != owner.path:
                found[f"{name}@{entry.distribution}"] = entry
    return found


def find(group: str, text: str) -> Entry:
    """Look up `name`, `name@distribution` or the class path of something registered.

    Raises:
        UserError: nothing has that name, or plugins disagree about it and none of them is named.
    """
    name, at, distribution = text.partition("@")
    known, kind = _scan(group)[0], _KINDS[group]
    if "." in name:
        claims = [entry for listed in known.values() for entry in listed if entry.path == name]
    else:
        claims = known.get(name) or known.get(ALIASES.get(name, name)) or []
    if not claims:
        similar = near(re.split(r"\W", name.lower().replace("-", "_"))[-1], known)
        every = "kdzoo list" if group == METHODS else ", ".join(sorted(known))
        raise UserError(f"no {kind} named {name!r}.{similar} All: {every}")
    origins = " and ".join(entry.origin for entry in claims)
    if at:
        for entry in claims:
            if entry.distribution == normal(distribution):
                return entry
        raise UserError(f"no {kind} {name!r} in a distribution {distribution!r}: it comes from {origins}")
    owner = _owner(claims)
    if owner is None:
        choices = " or ".join(f"{entry.name}@{entry.distribution}" for entry in claims)
        raise UserError(f"{kind} {name!r} is claimed by {origins}: say {choices}")
    rivals = [f"{entry.name}@{entry.distribution}" for entry in claims if entry.path != owner.path]
    if rivals:
        _warn(f"{kind} {owner.name!r} is kdzoo's own; say {' or '.join(rivals)} for the other")
    return owner


def problems() -> list[str]:
    """What is wrong with the installed metadata and configs, one line each; empty when all is well."""
    lines = [line for group in GROUPS for line in _scan(group)[1]]
    lines += [
        f"config {stem!r} is {' and '.join(map(str, paths))}" for stem, paths in _configs().items() if len(paths) > 1
    ]
    return list(dict.fromkeys(lines))


def config_files(distribution: str | None = None) -> dict[str, Path]:
    """Every config that can be asked for by name, stem -> path; of one distribution only, if it is given."""
    return {stem: paths[0] for stem, paths in _configs(distribution).items() if len(paths) == 1}


def find_config(text: str) -> Path:
    """Look up a config by name (`kd_tiny`) or, with a separator or a `.yaml` suffix in it, by path.

    Raises:
        UserError: there is no such file or name, or several files have the name.
    """
    if re.search(r"[/\\]|\.ya?ml$", text):
        path = Path(os.path.expanduser(text))  # leaves an unknown ~user alone
        if path.is_file():
            return path
        wrong = "is a folder, not a config file" if path.is_dir() else "does not exist"
        raise UserError(f"config file {text!r} {wrong}.{near(path.stem, config_files())} All: kdzoo list")
    if not NAME.fullmatch(text):
        raise UserError(f"{text!r} is neither the name of a config (a-z, 0-9, _) nor a path (with / or .yaml)")
    configs = _configs()
    if text not in configs:
        raise UserError(f"no config named {text!r}.{near(text, configs)} All: kdzoo list")
    if len(configs[text]) > 1:
        raise UserError(f"config {text!r} is {' and '.join(map(str, configs[text]))}: give the path")
    return configs[text][0]


def recipes_in(config: Any) -> set[str]:
    """Collect the recipes that a config names: text under a key `teacher`, `start` or `recipe`, and `recipe:NAME`."""
    if not isinstance(config, dict | list):
        return set()
    found: set[str] = set()
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if str(key).rpartition(".")[2] in ("teacher", "start", "recipe"):
            found |= {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)}
        if isinstance(value, str) and value.startswith(RECIPE):
            found.add(value.removeprefix(RECIPE))
        found |= recipes_in(value)
    return found


def _scan(group: str) -> tuple[dict[str, list[Entry]], list[str]]:
    """Name -> claims (at most one per distribution, in the order of sys.path), and problems."""
    return _scan_path(group, tuple(map(str, sys.path)))


@functools.cache
def _scan_path(group: str, path: tuple[str, ...]) -> tuple[dict[str, list[Entry]], list[str]]:
    claims: dict[str, list[Entry]] = {}
    problems: list[str] = []
    try:
        with warnings.catch_warnings():
            # A malformed value is a warning that does not say whose it is; importlib.metadata keeps the owner.
            warnings.simplefilter("error", UserWarning)
            points = entrypoints.get_group_all(group, path=path)
        found = [(p.name, f"{p.module_name}:{p.object_name or ''}", p.distro.name, p.distro.version) for p in points]
    except Exception as error:  # one broken file of any installed package is enough
        problems.append(f"entrypoints failed, importlib.metadata is used instead: {_cause(error)}")
        found = list(_standard_scan(group, problems))
    versions: dict[str, str] = {}
    for name, target, distribution, version in found:
        distribution, version = normal(distribution), version or "unknown"  # an .egg-info folder may have no version
        if versions.setdefault(distribution, version) != version:
            continue  # an older copy further down sys.path, which imports do not see either
        where = f"entry point {name!r} ({group}) of {distribution} {version}"
        match = _TARGET.fullmatch(target)
        if not NAME.fullmatch(name):
            problems.append(f"{where} is skipped: a name is made of a-z, 0-9 and _")
        elif not match:
            problems.append(f"{where} is skipped: {target!r} is not module:Class")
        elif all(entry.distribution != distribution for entry in claims.get(name, [])):
            claims.setdefault(name, []).append(Entry(name, group, match[1], match[2], distribution, version))
    return claims, problems


def _standard_scan(group: str, problems: list[str]) -> Iterator[tuple[str, str, str, str]]:
    import importlib.metadata  # dear, and rarely needed

    for distribution in importlib.metadata.distributions():
        try:
            for point in distribution.entry_points.select(group=group):
                yield point.name, point.value, distribution.name, distribution.version
        except Exception as error:
            problems.append(f"the metadata in {getattr(distribution, '_path', '?')} is unreadable: {_cause(error)}")


def _owner(claims: list[Entry]) -> Entry | None:
    """Whose the bare name is: kdzoo's, or the only target's; None if plugins disagree."""
    own = [entry for entry in claims if entry.distribution == OWN]
    agreed = len({entry.path for entry in claims}) == 1
    return own[0] if own else claims[0] if agreed else None


def _configs(distribution: str | None = None) -> dict[str, list[Path]]:
    """Stem -> every file of that name; kdzoo's own hide the plugins'."""
    package = Path(__file__).parent
    own = next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), None)
    folders: dict[Path, None] = {}
    for group in GROUPS:
        for entry in (entry for claims in _scan(group)[0].values() for entry in claims):
            if entry.distribution != OWN and distribution in (None, entry.distribution):
                folders |= {folder / "configs": None for folder in package_folders(entry.module) if folder != package}

    def stems(folders: Iterable[Path]) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in (path for folder in sorted(folders) for path in sorted(folder.rglob("*.yaml"))):
            found.setdefault(path.stem, []).append(path)
        return found

    return stems(folders) | stems([own] if own and distribution in (None, OWN) else [])


def package_folders(module: str) -> list[Path]:
    """Where the top-level package of `module` lies, found without importing it; empty if it is not a package."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except Exception:  # a plugin's own import hook may fail in any way
        spec = None
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def normal(distribution: str) -> str:
    """Normalise a distribution's name: lower case, single dashes."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@functools.cache
def _warn(line: str) -> None:
    """Say it once per process."""
    print(f"kdzoo: warning: {line}", file=sys.stderr)
