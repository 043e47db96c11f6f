"""Short names on the command line and in configs: `--model dkd`, `--config kd_tiny`, `class_path: dkd`.

jsonargparse knows a name without dots only when its class has been imported. So names are spelled out before it sees
them: in the arguments, and by the loader that reads every config.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings

from kdzoo import registry
from kdzoo.errors import near

GROUPS = {"model": registry.METHODS, "data": registry.DATA}
PACKAGES = ("kdzoo", "lightning", "torch", "torchvision", "torchmetrics", "timm", "diffusers", "wandb")
SUBCOMMANDS = ("fit", "validate", "test", "predict")


def class_path(group: str, text: str) -> str:
    """Spell out a registered name, once it is known to load; the class path of a registered class stays.

    Raises:
        UserError: Nothing registered has that name or class path, or it cannot be loaded.
    """
    entry = registry.find(group, text)
    entry.load()
    return entry.path


def spell_out(arguments: list[str]) -> list[str]:
    """Spell out names in arguments: after `--model`, `--data`, their `.class_path` and `.help`, and `--config`."""
    spelled = []
    pending: str | None = None  # the key whose value comes next
    for argument in arguments:
        if pending is not None:
            argument, pending = _value(pending, argument), None
        elif argument.startswith("--") or argument == "-c":
            key, equals, value = argument.lstrip("-").partition("=")
            if _is_name(key):
                if equals:
                    argument = f"--{key}={_value(key, value)}"
                else:
                    pending = key
        spelled.append(argument)
    return spelled


def _is_name(key: str) -> bool:
    head, _, tail = key.partition(".")
    return key in ("config", "c") or (head in GROUPS and tail in ("", "class_path", "help"))


def _value(key: str, value: str) -> str:
    if key in ("config", "c"):
        return str(registry.find_config(value))
    if value.startswith(("{", "-")):  # a literal dictionary goes through the loader
        return value
    return class_path(GROUPS[key.partition(".")[0]], value)


def trust_only_the_zoo() -> None:
    """Let configs name classes and functions of the packages that a run is made of, and of plugins, and no others."""
    plugins = {
        entry.module.partition(".")[0] for group in GROUPS.values() for entry in registry.entries(group).values()
    }
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted({*PACKAGES, *plugins}))


@contextmanager
def read_short_names() -> Iterator[None]:
    """Let jsonargparse read YAML with short names in it."""
    base = get_loader("yaml")

    def load(text: str) -> Any:
        config = base(text)
        if isinstance(config, dict):
            for part in (config, *(config[name] for name in SUBCOMMANDS if isinstance(config.get(name), dict))):
                for name, group in GROUPS.items():
                    if isinstance(part.get(name), str):
                        part[name] = class_path(group, part[name])
                    elif isinstance(part.get(name), dict) and "class_path" in part[name]:
                        part[name]["class_path"] = class_path(group, part[name]["class_path"])
            if isinstance(config.get("class_path"), str) and "." not in config["class_path"]:
                config["class_path"] = _in_any_group(config["class_path"])
        return config

    set_loader("yaml", load, exceptions=(yaml.YAMLError,))
    try:
        yield
    finally:
        set_loader("yaml", base, exceptions=(yaml.YAMLError,))


def _in_any_group(name: str) -> str:
    for group in GROUPS.values():
        if name in registry.entries(group):
            return class_path(group, name)
    return name


def explain(message: str) -> str:
    """Make one sentence of a jsonargparse error, which is a tree of all that was tried."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    key = ".".join(dict.fromkeys(keys))
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        owner = re.findall(r"class_path '([^']+)'", message)
        place = owner[-1] if owner else key
        return f"'{found[1]}' is not an argument of {place}.{near(found[1], _arguments(place))} All: kdzoo info NAME."
    if found := re.search(r"arguments are required: (.+)", message):
        return f"These arguments are missing: {key + ': ' if key else ''}{found[1].strip()}."
    if found := re.search(r"Unrecognized arguments: (.+)", message, re.IGNORECASE):
        return f"These arguments are not known: {found[1].strip()}. All: kdzoo fit --help."
    if found := re.search(r"Key '?\"?([\w.]+)'?\"? is not (?:required|expected|valid)", message):
        return f"'{found[1]}' is not a key of a config."
    innermost = message[max(0, message.rfind("Parser key")) :]
    if tries := re.findall(r"(Expected .+?)(?:\. Got value: (.+)|\n|$)", innermost):
        tried, value = next((pair for pair in tries if pair[1]), tries[0])
        given = re.search(r"Given value: (.+)", innermost)
        value = value or (given[1] if given and len(given[1]) < 100 else "")
        return f"{key or 'An argument'}: {_readable(tried)}{f', got {value.strip()}' if value else ''}."
    text = " ".join(message.split())
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _readable(text: str) -> str:
    text = re.sub(r"(?:a )?typing\.Literal\[(.+?)\]", r"one of \1", text)
    return re.sub(r"<class '([\w.]+)'>", r"\1", text).strip().rstrip(".")


def _arguments(path: str) -> list[str]:
    import importlib
    import inspect

    module, _, name = path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError):
        return []
