"""The `kdzoo` command. What needs no torch is answered here; training, `bench` and `export` are handed on."""

import argparse
import difflib
import errno
import json
import keyword
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from kdzoo import __version__, registry
from kdzoo.card import Card, read_card
from kdzoo.errors import UsageError, UserError, near
from kdzoo.registry import DATA, METHODS, Entry

COMMANDS = {
    "fit": "train a method: kdzoo fit --config kd_tiny",
    "validate": "evaluate a checkpoint on the validation part",
    "test": "evaluate a checkpoint on the test part",
    "predict": "write a checkpoint's predictions",
    "list": "every method, where it comes from, and its proof",
    "info": "one method: paper, arguments, configs, proof",
    "bench": "prove a method against its baselines, over seeds",
    "cache": "list, verify or prune the teachers and stores that are kept",
    "export": "write the student of a finished run again",
    "new-plugin": "start a package with a method of your own",
    "doctor": "load everything and explain what is broken",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TAKEN = ("CARD", "Card", "Classifier", "Optim", "Teachers", "Tensor")  # names in the plugin template


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Raises:
        SystemExit: with the exit code, unless it is 0: 1 for a user's error, 2 for a wrong command line.
    """
    debug = os.environ.get("KDZOO_DEBUG", "") not in ("", "0")
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except UserError as error:
        code = _say(str(error), error.exit_code, debug)
    except BrokenPipeError:  # kdzoo list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt:
        code = _say("interrupted", 130, debug)
    except Exception as error:
        told, full = _told(error), _disk_full(error)
        if told is not None:
            code = _say(str(told), told.exit_code, debug)
        elif full is not None:
            what = f" while writing {full.filename}" if full.filename else ""
            code = _say(f"the disk is full{what}: make room and run the same command again", 1, debug)
        else:
            raise
    if code:
        sys.exit(code)


def _told(error: BaseException | None) -> UserError | None:
    """Find a UserError among the causes of an error: jsonargparse puts its own on top of a constructor's."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _disk_full(error: BaseException | None) -> OSError | None:
    """Find the full disk among an error and its causes: torch reports its own failure to write on top."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _FULL):
        error = error.__cause__ or error.__context__
    return error


def _say(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"kdzoo: {message}", file=sys.stderr)
    return code


def _run(argv: list[str]) -> int | None:
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help", "help"):
        print("kdzoo: knowledge distillation, every method with its proof\n\nusage: kdzoo COMMAND ...\n")
        print("\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items()))
        print("\nkdzoo COMMAND --help says more; KDZOO_DEBUG=1 shows tracebacks; caches live in $KDZOO_CACHE.")
        return 0
    if command == "--version":
        print(f"kdzoo {__version__}")
        return 0
    if command in ("fit", "validate", "test", "predict"):
        from kdzoo import lightning_cli

        lightning_cli.run(argv)
        return 0
    if command == "export":
        from kdzoo import lightning_cli

        lightning_cli.export(rest)
        return 0
    if command == "bench":
        from kdzoo.proof import bench

        return bench.main(rest)
    if command == "cache":
        from kdzoo import cache

        return cache.main(rest)
    own: dict[str, Callable[[list[str]], int | None]] = {
        "list": _list,
        "info": _info,
        "doctor": _doctor,
        "new-plugin": _new_plugin,
    }
    if command not in own:
        raise UsageError(f"no command named {command!r}.{near(command, COMMANDS)} All: kdzoo --help")
    return own[command](rest)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"kdzoo {command}", description=description, allow_abbrev=False)


# ----------------------------------------------------------------------------------------------------------------- list


def _list(argv: list[str]) -> None:
    parser = _parser("list", "Every method, where it comes from, and what its recorded proof says.")
    parser.add_argument("--family", help="only this family (image, mae, ...)")
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    entries = registry.entries(METHODS)
    configs = {origin: registry.config_files(origin) for origin in {entry.distribution for entry in entries.values()}}
    rows = [_row(name, entry, configs[entry.distribution]) for name, entry in entries.items()]
    if arguments.family:
        families = sorted({row["family"] for row in rows if row["family"]})
        if arguments.family not in families:
            similar = near(arguments.family, families)
            raise UserError(f"no family named {arguments.family!r}.{similar} All: {', '.join(families)}")
        rows = [row for row in rows if row["family"] == arguments.family]
    rows.sort(key=lambda row: (row["family"], row["year"] or 0, row["name"]))
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "paper", "from", "proof", ""):
        table.add_column(column, no_wrap=column != "paper")
    for row in rows:
        origin = f"{row['distribution']} {row['version']}"
        table.add_row(row["name"], row["title"] or row["problem"], origin, row["proof"]["text"], _verdict(row))
    _print(table)
    failed = [row["name"] for row in rows if row["proof"]["passed"] is False]
    passed = sum(row["proof"]["passed"] is True for row in rows)
    last = f"{len(rows)} methods, {passed} proofs passed, {len(failed)} not reached"
    print(last + (f" (kdzoo info {', '.join(failed)})" if failed else ""))
    if registry.problems():
        print(f"kdzoo: {len(registry.problems())} problems with what is installed: kdzoo doctor", file=sys.stderr)


def _row(name: str, entry: Entry, configs: dict[str, Path]) -> dict[str, Any]:
    card, problem = None, ""
    try:
        card = read_card(entry).card
        problem = "" if card else f"{entry.module} has no CARD"
    except UserError as error:
        problem = str(error)
    return {
        "name": name,
        "family": card.family if card else "",
        "title": card.title if card else "",
        "arxiv": card.arxiv if card else "",
        "year": card.year if card else None,
        "distribution": entry.distribution,
        "version": entry.version,
        "problem": problem,
        "proof": _proof(entry, configs),
    }


def _verdict(row: dict[str, Any]) -> str:
    return {True: "passed", False: "not reached"}.get(row["proof"]["passed"], "")


def _proof(entry: Entry, configs: dict[str, Path]) -> dict[str, Any]:
    """The recorded result beside `<name>_bench.yaml`, among the configs of the method's own distribution."""
    bench = configs.get(f"{entry.name}_bench")
    file = bench.with_suffix(".json") if bench else None
    if file is None or not file.is_file():
        return {"text": "-", "passed": None}
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return {"text": _claim(result, result["criteria"][0]), "passed": result["passed"], "file": str(file)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return {"text": f"{file} cannot be read: {error!r}", "passed": None, "file": str(file)}


def _claim(result: dict[str, Any], criterion: dict[str, Any]) -> str:
    """`+4.5 ± 0.6 accuracy over ce`: the first criterion, with the deviation of its paired differences."""
    from statistics import stdev

    metric, value = criterion["metric"], criterion["value"]
    short = metric.rpartition("/")[2]
    if value is None:
        return f"{short} is not finite"
    if "ratio_to" in criterion:
        return f"{value:.2f} x {short} of {criterion['ratio_to']}"
    left, right = (result["arms"][criterion[side]]["values"][metric] for side in ("left", "minus"))
    differences = [a - b for a, b in zip(left, right)]
    digits = 1 if abs(value) >= 1 else 3
    spread = f" ± {stdev(differences):.{digits}f}" if len(differences) > 1 else ""
    return f"{value:+.{digits}f}{spread} {short} over {criterion['minus']}"


def _print(table: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 400  # a pipe gets whole lines
    Console(markup=False, emoji=False, highlight=False, width=width).print(table)


# ----------------------------------------------------------------------------------------------------------------- info


def _info(argv: list[str]) -> None:
    parser = _parser("info", "One method or data module: paper, arguments, configs that name it, proof.")
    parser.add_argument("name", help="a name from kdzoo list, or name@distribution")
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    bare = arguments.name.partition("@")[0]
    methods, data = (
        [name for entry in registry.entries(group).values() for name in (entry.name, entry.path)]
        for group in (METHODS, DATA)
    )
    nearest = [bare] if bare in methods else difflib.get_close_matches(bare, [*data, *methods], n=1, cutoff=0.5)
    group = DATA if nearest and nearest[0] not in methods else METHODS
    entry = registry.find(group, arguments.name)
    source = read_card(entry)
    about = {
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "class": entry.path,
        "file": source.file,
        "about": " ".join(source.docstring.partition("\n\n")[0].split()),
        "card": vars(source.card) if source.card else None,
        "arguments": [argument._asdict() for argument in source.arguments],
        "configs": {stem: str(path) for stem, path in _configs_of(entry).items()},
        "proof": _proof(entry, registry.config_files(entry.distribution)) if group == METHODS else None,
    }
    print(json.dumps(about, indent=2) if arguments.json else _page(about, source.card))


def _page(about: dict[str, Any], card: Card | None) -> str:
    lines = [f"{about['name']}  {card.title} ({card.year})" if card else about["name"], about["about"], ""]
    facts = {"from": f"{about['distribution']} {about['version']}", "class": about["class"], "file": about["file"]}
    for key, value in (about["card"] or {}).items():
        if value and key not in ("title", "year"):
            facts[key] = ", ".join(value) if key == "tags" else value
    lines += [f"{key:<10}{value}" for key, value in facts.items()]
    if about["arguments"]:
        lines += ["", "arguments"]
    for argument in about["arguments"]:
        default = "" if argument["default"] is None else f" = {argument['default']}"
        lines.append(f"  {argument['name']:<24}{argument['annotation']}{default}")
    if about["configs"]:
        lines += ["", "configs", *(f"  {stem:<24}{path}" for stem, path in about["configs"].items())]
    if about["proof"]:
        lines += ["", f"proof     {about['proof']['text']}  {_verdict(about)}".rstrip()]
    return "\n".join(lines)


def _configs_of(entry: Entry) -> dict[str, Path]:
    """The configs whose model (or data) is this entry."""
    import yaml

    names = {f"{entry.name}@{entry.distribution}", entry.path}
    names |= {name for name, owner in registry.entries(entry.group).items() if owner == entry}
    found = {}
    for stem, path in registry.config_files().items():
        try:
            text = path.read_text(encoding="utf-8")
            config = yaml.safe_load(text) if any(name in text for name in names) else None
        except (OSError, ValueError, yaml.YAMLError):
            continue  # whoever runs it is told
        part = config.get("model" if entry.group == METHODS else "data") if isinstance(config, dict) else None
        if (part.get("class_path") if isinstance(part, dict) else part) in names:
            found[stem] = path
    return found


# --------------------------------------------------------------------------------------------------- doctor, new-plugin


def _doctor(argv: list[str]) -> int:
    parser = _parser("doctor", "Load every method and data module and explain what is broken; exit 1 if anything is.")
    parser.parse_args(argv)
    from kdzoo import doctor

    return doctor.examine()


def _new_plugin(argv: list[str]) -> None:
    parser = _parser("new-plugin", "Write a package kdzoo-NAME with one method that runs and passes its tests.")
    parser.add_argument("name", help="the method's name: a-z, 0-9 and _")
    parser.add_argument("--path", type=Path, default=Path(), metavar="DIR", help="where to put it (default: here)")
    arguments = parser.parse_args(argv)
    name, folder = arguments.name, arguments.path / f"kdzoo-{arguments.name}"
    title = name.upper() if len(name) <= 4 else "".join(part.capitalize() for part in name.split("_"))
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name) or {name, title} & {*keyword.kwlist, *_TAKEN}:
        raise UserError(f"{name!r} cannot name a method: take a word of a-z, 0-9 and _ that Python does not use itself")
    if name in registry.ALIASES or any(entry.name == name for entry in registry.entries(METHODS).values()):
        raise UserError(f"a method {name!r} is installed already (kdzoo info {name}): take another name")
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already: remove it, or take another name or --path")
    template = Path(__file__).parent / "assets" / "plugin_template"
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir()  # --path itself must exist
        for file in sorted(template.rglob("*.template")):
            target = partial / str(file.relative_to(template)).replace("NAME", name).removesuffix(".template")
            target.parent.mkdir(parents=True, exist_ok=True)
            text = Template(file.read_text(encoding="utf-8"))
            target.write_text(text.substitute(name=name, title=title, version=__version__), encoding="utf-8")
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in _FULL:
            raise
        raise UserError(f"{folder} cannot be written: {error}") from error
    print(f"written   {folder}\nnext      pip install -e {folder} && pytest {folder} && kdzoo fit --config {name}_tiny")
