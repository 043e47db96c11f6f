"""`kdzoo bench NAME`: runs the arms of `<NAME>_bench.yaml` over seeds and says whether the method's criteria hold.

Every run is a `kdzoo fit` in a process of its own, one at a time, seeds outermost and arms interleaved, so that a slow
hour of the machine falls on all arms alike. Runs live under `runs/bench/<name>/<hash>/`: an interrupted bench continues
there.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kdzoo.errors import UsageError, UserError, near
from kdzoo.files import write_text
from kdzoo.proof.criteria import COSTS, TEACHER, config_sha256, evaluate, finite
from kdzoo.proof.table import markdown, show
from kdzoo.registry import find_config

KEYS = {"metrics": list, "seeds": list, "arms": dict, "criteria": list, "rows": list}
Check = Callable[[object, str], None]  # complains unless the condition holds
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}  # how a line is printed
Results = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> what its result.json says


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kdzoo bench` with the arguments `argv`; 1 if a judged criterion was not reached, else 0."""
    parser = argparse.ArgumentParser("kdzoo bench", description="Runs methods' proofs: arms over seeds, and criteria.")
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="reads NAME_bench.yaml; or the path of such a file")
    add("--seeds", nargs="+", type=int, help="other seeds than the config's: criteria are shown, not judged")
    add("--json", type=Path, metavar="FILE", help="write the result here, not beside the config")
    add("--keep", action="store_true", help="keep the runs' checkpoints until the next bench of this config")
    add("--table", action="store_true", help="print recorded results as a markdown table; run nothing")
    add("--family", help="with --table: only this family")
    options = parser.parse_args(argv)
    if options.table:
        print(markdown(options.family, options.names))
        return 0
    if not options.names:
        raise UsageError("kdzoo bench needs the NAME of a method with a proof; kdzoo list shows them.")
    if options.json and len(options.names) > 1:
        raise UsageError("--json names one file, so give one NAME with it.")
    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        raise UsageError("--seeds holds a seed twice; seeds are paired samples and must differ.")
    paths = [
        find_config(name if name.endswith((".yaml", ".yml")) else f"{name.removesuffix('_bench')}_bench")
        for name in options.names
    ]
    benches = [read_bench(path) for path in paths]  # all of them before the first run starts
    not_reached = 0
    finished: dict[str, dict[str, Any]] = {}  # benches of one command share the arms that are the same
    for path, bench in zip(paths, benches):
        recorded = run_bench(path, bench, options.seeds or bench["seeds"], options.json, options.keep, finished)
        not_reached += recorded["passed"] is False
    return min(not_reached, 1)


def read_bench(path: Path) -> dict[str, Any]:
    """Read and check a bench file; a UserError names what is wrong with it."""

    def check(condition: object, problem: str) -> None:
        if not condition:
            raise UserError(f"{path}: {problem}")

    try:
        bench = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    check(isinstance(bench, dict), f"must be a mapping with the keys {', '.join(KEYS)}")
    for key in bench:
        check(key in KEYS, f"unknown key '{key}', the keys are {', '.join(KEYS)}")
    bench.setdefault("rows", [])
    for key, kind in KEYS.items():
        full = isinstance(bench.get(key), kind) and (bench[key] or key == "rows")
        check(full, f"'{key}' is missing, empty or not a {kind.__name__}")
    check(all(isinstance(metric, str) for metric in bench["metrics"]), "'metrics' must be a list of names")
    check(all(type(seed) is int for seed in bench["seeds"]), "'seeds' must be a list of integers")
    check(len(set(bench["seeds"])) == len(bench["seeds"]), "'seeds' holds a seed twice, but they are paired samples")
    for name, arm in bench["arms"].items():
        check_arm(check, name, arm)
    for key in ("criteria", "rows"):
        for row in bench[key]:
            check_row(check, key, row, bench)
    return bench


def check_arm(check: Check, name: Any, arm: Any) -> None:
    """Check one entry of `arms`: its name and its `{config: STEM, set: {dotted.key: value}}`."""
    check(isinstance(name, str) and re.fullmatch(r"\w[\w.+-]*", name), f"the arm name '{name}' must be a word")
    check(name != TEACHER, f"the arm name '{TEACHER}' is taken by the built-in arm")
    check(isinstance(arm, dict) and isinstance(arm.get("config"), str), f"arm '{name}' needs config: NAME")
    check(arm.keys() <= {"config", "set"}, f"arm '{name}' may hold only config and set")
    check(isinstance(arm.get("set", {}), dict), f"set of arm '{name}' must map dotted keys to values")
    find_config(arm["config"])


def check_row(check: Check, kind: str, row: Any, bench: Mapping[str, Any]) -> None:
    """Check one entry of `criteria` or `rows` against the metrics and arms of `bench`."""
    check(isinstance(row, dict), f"'{row}' under {kind} must be a mapping")
    other = "ratio_to" if "ratio_to" in row and kind == "criteria" else "minus"
    last = "label" if kind == "rows" else "at_most" if "at_most" in row else "at_least"
    needs = "metric, left, minus and label" if kind == "rows" else "metric, left, minus | ratio_to, at_least | at_most"
    check(row.keys() == {"metric", "left", other, last}, f"{row} under {kind} must have {needs}")
    check(kind == "rows" or type(row[last]) in (int, float), f"{last} of {row} must be a number")
    metrics, arms = bench["metrics"], [*bench["arms"], TEACHER]
    check(row["metric"] in metrics, f"{kind} name the metric '{row['metric']}', which is not under metrics")
    for arm in (row["left"], row[other]):
        check(arm in arms, f"{kind} name an unknown arm '{arm}'.{near(str(arm), arms)}")


def run_bench(
    path: Path,
    bench: dict[str, Any],
    seeds: list[int],
    file: Path | None,
    keep: bool,
    finished: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Run what of `bench` is neither there nor in `finished`; print, write and return the result."""
    # A pipe gets whole lines.
    console = Console(width=None if sys.stdout.isatty() else 200)
    name, digest = path.stem.removesuffix("_bench"), config_sha256(path)
    full = sorted(seeds) == sorted(bench["seeds"])
    folder = Path("runs", "bench", name, digest[:12] if full else "-".join([digest[:12], *map(str, seeds)]))
    done = folder / "done"
    if done.exists():  # only an interrupted bench is continued: a new one must see the code as it is now
        shutil.rmtree(folder)
    results: Results = {arm: {} for arm in bench["arms"]}
    total = len(seeds) * len(results)
    if found := sum((folder / arm / str(seed) / "result.json").exists() for seed in seeds for arm in results):
        console.print(f"continuing an interrupted bench: {found} of {total} runs are in {folder}", **PLAIN)
    columns = (TextColumn("bench {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(name), total=total)
        for seed in seeds:
            for arm, how in bench["arms"].items():
                progress.update(task, description=f"{escape(name)}  {escape(arm)}  seed {seed}")
                run = json.dumps([how, seed], sort_keys=True)
                if run not in finished:
                    finished[run] = run_arm(arm, how, seed, folder / arm / str(seed), keep)
                results[arm][seed] = finished[run]
                check_metrics(arm, results[arm][seed], bench["metrics"])
                progress.advance(task)
            teacher_results(bench, results)  # a criterion that no teacher can meet should not cost more seeds
    recorded = record(bench, results, judged=full) | {"config_sha256": digest}
    beside = full and in_checkout(path)
    target = file or (path.with_suffix(".json") if beside else Path("runs", "bench", f"{path.stem}.json"))
    write_text(target, json.dumps(recorded, indent=1) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    done.touch()
    show(console, recorded)
    console.print(f"written to {target}", **PLAIN)
    return recorded


def command(arm: Mapping[str, Any], seed: int, run_dir: Path) -> list[str]:
    """Build the command of one run. Strings go as they are: jsonargparse would keep JSON's quotation marks."""
    fixed = ["--config", arm["config"], "--seed_everything", str(seed), "--run_dir", str(run_dir), "--show", "nothing"]
    settings = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in arm.get("set", {}).items()
    }
    return [sys.executable, "-m", "kdzoo", "fit", *fixed, *(f"--{key}={value}" for key, value in settings.items())]


def run_arm(name: str, arm: Mapping[str, Any], seed: int, run_dir: Path, keep: bool) -> dict[str, Any]:
    """Run one arm with one seed, unless its result is there already, and return its result.json."""
    result, log = run_dir / "result.json", run_dir.with_name(f"{seed}.log")
    if not result.exists():
        shutil.rmtree(run_dir, ignore_errors=True)  # what an interruption left half-done
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            code = subprocess.run(command(arm, seed, run_dir), stdout=subprocess.DEVNULL, stderr=stderr).returncode
        if code or not result.exists():
            result.unlink(missing_ok=True)  # a run that failed after writing it has failed all the same
            said = log.read_text("utf-8", errors="replace").strip().rpartition("\n")[2] or "it says nothing"
            raise UserError(f"arm '{name}' with seed {seed} failed with exit code {code}: {said} (log: {log})")
        if not keep:
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    loaded: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return loaded


def number(result: Mapping[str, Any], metric: str) -> float | None:
    """Look `metric` up in a result: one of its metrics, or one of its costs (`train_seconds`, `peak_mb` ...)."""
    return finite(result["metrics"].get(metric, result.get(metric)))


def check_metrics(arm: str, result: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Raise a UserError if the run of `arm` does not report one of `metrics`."""
    has = [*result["metrics"], *COSTS]
    for metric in metrics:
        if metric not in has:
            raise UserError(f"arm '{arm}' reports no metric '{metric}', only {', '.join(has)}.{near(metric, has)}")


def teacher_results(bench: Mapping[str, Any], results: Results) -> dict[int, dict[str, Any]]:
    """Take the arm `teacher` out of the other arms' results: seed -> result, empty if they have none or several.

    Raises:
        UserError: a criterion or row names `teacher`, and there is not one that has the scores.
    """
    teachers: dict[int, dict[str, dict[str, Any]]] = {seed: {} for runs in results.values() for seed in runs}
    for runs in results.values():
        for seed, result in runs.items():
            if teacher := result["teacher"]:
                teachers[seed][teacher["hash"]] = teacher
    one = all(len(by_hash) == 1 for by_hash in teachers.values())
    found = {seed: next(iter(by_hash.values())) for seed, by_hash in teachers.items()} if one else {}
    for row in [*bench["criteria"], *bench["rows"]]:
        compared = TEACHER in (row["left"], row.get("minus"), row.get("ratio_to"))
        if compared and not (found and all(row["metric"] in teacher["scores"] for teacher in found.values())):
            raise UserError(f"comparing with '{TEACHER}' takes one teacher, the same in all arms, with {row['metric']}")
    return {seed: {"metrics": t["scores"], "trainable_params": t["parameters"]} for seed, t in found.items()}


def record(bench: Mapping[str, Any], results: Results, judged: bool) -> dict[str, Any]:
    """Gather the results of all arms in the form that is written as JSON, criteria evaluated."""
    seeds = list(next(iter(results.values())))
    arms: dict[str, Any] = {}
    for name, runs in {**results, TEACHER: teacher_results(bench, results)}.items():
        if not runs:
            continue
        values = {metric: [number(runs[seed], metric) for seed in seeds] for metric in bench["metrics"]}
        arms[name] = {
            "values": values,
            "mean": {metric: summary(statistics.fmean, found) for metric, found in values.items()},
            "std": {metric: summary(statistics.stdev, found) for metric, found in values.items()},
            **{cost: summary(statistics.fmean, [runs[seed].get(cost) for seed in seeds]) for cost in COSTS},
        }
    criteria = evaluate({"arms": arms, "seeds": seeds, "criteria": bench["criteria"]})
    if not judged:
        criteria = [{**row, "passed": None} for row in criteria]
    verdicts = [row["passed"] for row in criteria]
    # The proof is of the method on the left of the first criterion.
    subject = results.get(bench["criteria"][0]["left"], next(iter(results.values())))[seeds[0]]
    return {
        "method": subject["method"],
        "metrics": bench["metrics"],
        "criteria": criteria,
        "passed": None if None in verdicts else all(verdicts),
        "rows": bench["rows"],
        "seeds": seeds,
        "arms": arms,
        "versions": subject["versions"],
    }


def summary(of: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    """Apply `of`, the mean or the standard deviation, to `values`; None if one is missing or they are too few."""
    numbers = [value for value in values if value is not None]
    return finite(of(numbers)) if len(numbers) == len(values) > (of is statistics.stdev) else None


def in_checkout(path: Path) -> bool:
    """Say whether the config at `path` lies in a writable `configs/` folder outside of an installation."""
    parts = path.resolve().parts
    installed = {"site-packages", "dist-packages"} & set(parts)
    return "configs" in parts and not installed and os.access(path.parent, os.W_OK)
