"""Recipes: a teacher given by the name of the config that trains it, trained once and kept.

The key of a recipe is a hash of everything that shaped the teacher: the resolved config (defaults included), the
content of its data and `RECIPE_VERSION`. Training runs in a process of its own, under a lock, before the Trainer of the
student starts; what it exports is moved into the cache at once or not at all.
"""

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from kdzoo import registry
from kdzoo.console import console, say
from kdzoo.errors import UserError
from kdzoo.files import cache_dir, write_text
from kdzoo.ranks import rank
from kdzoo.run_folder import AT_WORK, RESULT, RUNNING

# Raise it when a change of kdzoo makes the same config train another teacher.
RECIPE_VERSION = 1


def read_config(recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a recipe's config with `settings` ({dotted key: value}) applied.

    Raises:
        UserError: There is no such config, or it names no model or data.
    """
    path = registry.find_config(recipe)
    config = yaml.safe_load(path.read_text()) or {}
    for key, value in settings.items():
        *parents, last = key.split(".")
        target = config
        for parent in parents:
            target = target.setdefault(parent, {})
            if parent in ("model", "data") and parents[1:2] != ["init_args"] and key != f"{parent}.class_path":
                target = target.setdefault("init_args", {})
        target[last] = value
    for part in ("model", "data"):
        if not isinstance(config.get(part), dict) or "class_path" not in config[part]:
            raise UserError(
                f"The recipe '{recipe}' ({path}) has no {part}.class_path: a recipe is a config that kdzoo fit runs."
            )
    return config


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """Write out the defaults of a config's model and data, so that a change of a default is a change of the config."""
    resolved: dict[str, Any] = {"trainer": config.get("trainer", {}), "seed": config.get("seed_everything", 0)}
    for part, group in (("model", registry.METHODS), ("data", registry.DATA)):
        cls = registry.find(group, config[part]["class_path"]).load()
        defaults = {n: p.default for n, p in inspect.signature(cls).parameters.items() if p.default is not p.empty}
        given = config[part].get("init_args", {})
        arguments = {**defaults, **given}
        for name, default in defaults.items():
            if is_dataclass(default) and isinstance(arguments[name], dict):  # its own defaults shape the teacher too
                arguments[name] = replace(default, **arguments[name])  # type: ignore[type-var]
        resolved[part] = {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            **{k: repr(v) for k, v in arguments.items()},
        }
    return resolved


def data_module(config: dict[str, Any]) -> Any:
    """Make the data module of a config."""
    return registry.find(registry.DATA, config["data"]["class_path"]).load()(**config["data"].get("init_args", {}))


def key(config: dict[str, Any], above: tuple[str, ...] = ()) -> str:
    """The hash under which the teacher of a config is kept: 16 hexadecimal digits.

    Args:
        config: As `read_config` returns it.
        above: The recipes whose teacher this is to teach.

    Raises:
        UserError: A recipe is a teacher of its own teacher.
    """
    shaped_by = {"config": resolve(config), "data": data_module(config).fingerprint(), "version": RECIPE_VERSION}
    inner = {}
    for name in sorted(registry.recipes_in(config)):  # the teachers of this teacher
        if name in above:
            raise UserError(f"The recipe '{name}' is among its own teachers: give it another.")
        inner[name] = key(read_config(name, {}), (*above, name))
    if inner:
        shaped_by["recipes"] = inner
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()[:16]


def trained(recipe: str, settings: dict[str, Any]) -> Path:
    """Return the export folder of a recipe's teacher; train it first if it is not in the cache.

    Raises:
        UserError: The training failed; the message has its last line.
    """
    config = read_config(recipe, settings)
    folder = cache_dir() / "teachers" / key(config)
    if (folder / "config.json").is_file():
        used(folder)
        return folder
    while rank() > 0:  # the first rank trains it, or says why it cannot and ends the run
        if (folder / "config.json").is_file():
            return folder
        time.sleep(0.5)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # a second run waits here and then finds the teacher
        if not (folder / "config.json").is_file():
            say("teacher", f"{recipe} is not cached: training it first")
            run_dir = folder.with_suffix(".training")  # a kill leaves it, and the next run continues there
            run_dir.mkdir(exist_ok=True)
            while not (run_dir / RESULT).is_file():
                try:
                    train(recipe, settings, run_dir)
                except UserError as error:  # a training outlives a kill of the run that had started it
                    if AT_WORK not in str(error):
                        raise
                    with FileLock(run_dir / RUNNING):
                        pass
            write_text(run_dir / "export" / "recipe.txt", f"{recipe}\n")
            shutil.rmtree(folder, ignore_errors=True)
            (run_dir / "export").rename(folder)
            shutil.rmtree(run_dir)
    return folder


def used(folder: Path) -> None:
    """Note, by the time of the folder, when it was used last: `kdzoo cache` goes by it."""
    with suppress(OSError):  # a read-only cache is a cache
        os.utime(folder)


def train(recipe: str, settings: dict[str, Any], run_dir: Path) -> None:
    """Run `kdzoo fit --config RECIPE` in a process of its own."""
    show = "nothing" if console.quiet else "progress"
    command = [sys.executable, "-m", "kdzoo", "fit", "--config", recipe, "--run_dir", str(run_dir), "--show", show]
    # One process, so that every machine makes the same.
    command += ["--ckpt_path", "last", "--trainer.devices=1", "--trainer.num_nodes=1"]
    # Strings go as they are: jsonargparse would keep JSON's quotation marks.
    command += [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
    ]
    # Whatever the launcher has told this process about its peers is not for the teacher's.
    launcher = ("WORLD_SIZE", "RANK", "LOCAL_", "NODE_RANK", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "SLURM_")
    own = (*launcher, "PL_GLOBAL_SEED", "KDZOO_RUN_DIR")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"The recipe '{recipe}' could not be trained: {last.removeprefix('kdzoo: ')}")
