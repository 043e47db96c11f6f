"""`kdzoo doctor`: loads every registered class and says what is broken, why, and what to do."""

import importlib.metadata
import platform
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

from kdzoo import registry
from kdzoo.errors import UserError
from kdzoo.files import cache_dir

PATIENCE = 60  # seconds for one import
_VERSIONS = ("kdzoo", "torch", "lightning", "jsonargparse", "timm", "diffusers")


def examine() -> int:
    """Print the report; return 1 if anything is broken, else 0."""
    print(f"python    {platform.python_version()}  {sys.executable}")
    for package in _VERSIONS:
        print(f"{package:<14}{_version(package) or 'not installed'}")
    cache = cache_dir().absolute()
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    print(f"cache         {cache}: {shutil.disk_usage(existing).free / 1e9:.1f} GB free\n")

    broken = 0
    modules = {registry.OWN: {registry.OWN}}  # distribution -> its modules
    for group in registry.GROUPS:
        for name, entry in registry.entries(group).items():
            modules.setdefault(entry.distribution, set()).add(entry.module)
            try:
                with at_most(PATIENCE):
                    entry.load()
                print(f"ok        {name}  ({entry.origin})")
            except UserError as error:
                broken += 1
                print(f"broken    {name}  ({entry.origin}): {error}")
    problems = registry.problems()
    for distribution in modules:
        problems += [*_stale(distribution, modules[distribution]), *_clashes(distribution)]
    for problem in problems:
        print(f"problem   {problem}")
    print(f"\n{broken} broken, {len(problems)} problems" if broken or problems else "\nall is well")
    return int(bool(broken or problems))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the block after so many seconds, where the system has such an alarm (not on Windows)."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} seconds")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stale(distribution: str, modules: set[str]) -> Iterator[str]:
    """Compare the installed entry points with the pyproject.toml of an editable checkout (also under src/)."""
    folders = {folder for module in modules for folder in registry.package_folders(module)}
    for parent in sorted({parent for folder in folders for parent in list(folder.parents)[:2]}):
        try:
            project = tomllib.loads((parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            if registry.normal(project["name"]) != distribution:
                continue
            wanted = {
                (group, name, target.replace(" ", ""))
                for group in registry.GROUPS
                for name, target in project.get("entry-points", {}).get(group, {}).items()
            }
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # not a checkout
        installed = {
            (group, entry.name, f"{entry.module}:{entry.attribute}")
            for group in registry.GROUPS
            for entry in registry.entries(group).values()
            if entry.distribution == distribution
        }
        if wanted != installed:
            names = ", ".join(sorted({name for _, name, _ in wanted ^ installed}))
            cure = f"pip install -e {parent} --no-deps"
            yield f"the installed metadata of {distribution} is not that of its pyproject.toml ({names}): {cure}"


def _clashes(distribution: str) -> Iterator[str]:
    """Requirements, without extras, that what is installed does not meet."""
    from packaging.requirements import InvalidRequirement, Requirement  # comes with lightning

    try:
        needed = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in needed:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            yield f"{distribution} states a requirement that cannot be read: {text!r}"
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            has = f"{requirement.name} {version} is installed" if version else "it is not installed"
            yield f"{distribution} needs {requirement}, {has}: pip install '{requirement}'"
