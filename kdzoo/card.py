"""A method's card, and how to read it from the source without importing anything.

`CARD = Card(...)` stands at the top of every method file, as a literal: `kdzoo list` and `kdzoo info` parse the file,
so they answer without torch, and also for a plugin whose import fails.
"""

import ast
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from kdzoo.errors import UserError
from kdzoo.registry import Entry


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a method is and where it comes from; facts that are not confirmed stay empty.

    Raises:
        TypeError: a field has the wrong type.
    """

    title: str
    year: int
    family: str
    arxiv: str = ""
    task: str = ""
    teacher: str = ""
    student: str = ""
    data: str = ""
    code: str = ""  # the reference implementation
    headline: str = ""  # the paper's figure, with its setting
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = {"year": int, "tags": tuple}.get(field.name, str)
            if type(value) is not kind or not all(isinstance(tag, str) for tag in self.tags):
                raise TypeError(f"{field.name}={value!r} is not of type {kind.__name__}")


class Argument(NamedTuple):
    """One argument of a class's `__init__`, as text."""

    name: str
    annotation: str  # "" if there is none
    default: str | None  # None: required


@dataclass(frozen=True)
class Source:
    """What the source of a registered class says."""

    file: str
    docstring: str
    card: Card | None
    arguments: tuple[Argument, ...]  # the class's own __init__, empty if it inherits it


def read_card(entry: Entry) -> Source:
    """Parse the module that defines `entry`'s class, following `from .x import Y` in packages.

    Raises:
        UserError: there is no readable source, or its CARD is not a literal.
    """
    module, attribute = entry.module, entry.attribute
    for _ in range(5):  # a longer chain of re-exports is a circle
        file, text, package = _find_source(entry, module)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _problem(entry, f"{file} cannot be parsed: {error}") from error
        moved = _reexport(tree, attribute, package)
        if not moved:
            return Source(file, ast.get_docstring(tree) or "", _card(tree, entry, file), _arguments(tree, attribute))
        module, attribute = moved
    raise _problem(entry, f"{entry.path} is imported in a circle")


def _problem(entry: Entry, text: str) -> UserError:
    return UserError(f"{entry.name!r} of {entry.origin}: {text}")


def _find_source(entry: Entry, module: str) -> tuple[str, str, list[str]]:
    """File, text and package of `module`; the finders are asked part by part, so no parent package is imported."""
    path: Sequence[str] | None = None
    spec = None
    parts = module.split(".")
    for i, part in enumerate(parts):
        name = ".".join(parts[: i + 1])
        try:
            finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
            spec = next(filter(None, (finder.find_spec(name, path) for finder in finders)), None)
        except KeyError:  # a folder without __init__.py inside a package: importlib wants its parent imported
            path = [os.path.join(folder, part) for folder in path or ()]
            continue
        except Exception as error:  # a plugin's own import hook may fail in any way
            raise _problem(entry, f"looking for {name} failed: {error}") from error
        if spec is None:
            raise _problem(entry, f"there is no module {name}")
        path = spec.submodule_search_locations
    try:
        text = spec.loader.get_source(module)  # type: ignore[union-attr]
    except (ImportError, OSError, SyntaxError, AttributeError) as error:
        raise _problem(entry, f"the source of {module} cannot be read: {error}") from error
    if text is None or spec is None:
        raise _problem(entry, f"{module} has no Python source")
    return spec.origin or module, text, parts if path is not None else parts[:-1]


def _reexport(tree: ast.Module, attribute: str, package: list[str]) -> tuple[str, str] | None:
    """Where the class comes from, if this module only imports it: (module, attribute)."""
    name, dot, rest = attribute.partition(".")
    for node in (node for node in tree.body if isinstance(node, ast.ImportFrom)):
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                base = package[: len(package) + 1 - node.level] if node.level else []
                return ".".join([*base, *filter(None, [node.module])]), alias.name + dot + rest
    return None


def _card(tree: ast.Module, entry: Entry, file: str) -> Card | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == "CARD" for target in targets):
            continue
        call = getattr(node, "value", None)
        try:
            if not isinstance(call, ast.Call) or ast.unparse(call.func).split(".")[-1] != "Card" or call.args:
                raise ValueError("not a call of Card with named fields")
            return Card(**{str(field.arg): ast.literal_eval(field.value) for field in call.keywords})
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            example = 'CARD = Card(title="...", year=2024, family="...") with plain values only'
            raise _problem(entry, f"CARD in {file}:{node.lineno} cannot be read ({error}): write {example}") from error
    return None


def _arguments(tree: ast.Module, attribute: str) -> tuple[Argument, ...]:
    body = tree.body
    for name in [*attribute.split("."), "__init__"]:
        found = [node for node in body if getattr(node, "name", "") == name]
        if not found:
            return ()
        body = getattr(found[-1], "body", [])
    given = getattr(found[-1], "args", None)
    if given is None:
        return ()
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + given.defaults + given.kw_defaults
    return tuple(
        Argument(
            argument.arg,
            ast.unparse(argument.annotation) if argument.annotation else "",
            ast.unparse(default) if default else None,
        )
        for argument, default in list(zip([*plain, *given.kwonlyargs], defaults))[1:]  # without self
    )
