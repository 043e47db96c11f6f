"""When a proof holds: numbers in, verdict out, so that a recorded result can be judged again without running anything.

A difference (or ratio) is paired over seeds and has a two-sided 95 % t interval. It passes when its mean reaches the
bound and the whole interval lies on the good side of "no effect" (0, or 1 for a ratio). A bound that itself lies on the
other side of "no effect" asks for non-inferiority: then the whole interval must lie on the good side of the bound.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdzoo import registry

TEACHER = "teacher"  # the built-in arm: no run of its own, its scores stand in the other arms' results
# What a run costs, as its result.json names it; a bench may list these under `metrics` too.
COSTS = ("train_seconds", "cpu_seconds", "peak_mb", "trainable_params")


@dataclass(frozen=True)
class Interval:
    """Mean of paired values and the ends of its 95 % t interval: NaN where there are fewer than two values."""

    mean: float
    lower: float
    upper: float


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t interval of `values` (at least one); all NaN where a value is not finite."""
    from scipy.stats import t  # a second to import, which `kdzoo list` does not have

    n = len(values)
    if not all(math.isfinite(value) for value in values):
        return Interval(math.nan, math.nan, math.nan)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def compare(arms: Mapping[str, Any], row: Mapping[str, Any]) -> Interval:
    """Pair two arms over seeds.

    Args:
        arms: `arms` of a recorded result: name -> {"values": {metric: a number per seed, None where not finite}}.
        row: `metric`, `left` and either `minus` (difference) or `ratio_to` (ratio): the other arm.
    """

    def values(arm: str) -> list[float]:
        return [math.nan if value is None else value for value in arms[arm]["values"][row["metric"]]]

    left = values(row["left"])
    if "minus" in row:
        return interval([a - b for a, b in zip(left, values(row["minus"]), strict=True)])
    return interval([a / b if b else math.nan for a, b in zip(left, values(row["ratio_to"]), strict=True)])


def holds(found: Interval, row: Mapping[str, Any]) -> bool:
    """Say whether `found` passes the criterion `row`: `at_least` or `at_most`. NaN never passes."""
    no_effect = 0.0 if "minus" in row else 1.0
    if "at_least" in row:
        bound = row["at_least"]
        return found.mean >= bound and found.lower > min(no_effect, bound)
    bound = row["at_most"]
    return found.mean <= bound and found.upper < max(no_effect, bound)


def evaluate(recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Judge every criterion of a recorded result from its arms' values.

    Args:
        recorded: `criteria`, `seeds` and `arms` as `kdzoo bench` writes them.

    Returns:
        The criteria, each with `value` (the mean), `bound95` (the end of the interval that decides: the lower one for
        `at_least`) and `passed`; None stands for not finite and, under `passed`, for fewer than two seeds: not judged.
    """
    judged = []
    for row in recorded["criteria"]:
        found = compare(recorded["arms"], row)
        deciding = found.lower if "at_least" in row else found.upper
        passed = holds(found, row) if len(recorded["seeds"]) > 1 else None
        judged.append({**row, "value": finite(found.mean), "bound95": finite(deciding), "passed": passed})
    return judged


def finite(value: float | None) -> float | None:
    """Round `value` to what is worth recording; None where JSON has no number for it."""
    return round(value, 6) if value is not None and math.isfinite(value) else None


def config_sha256(bench_path: Path) -> str:
    """Hash what a bench runs, by what it says (comments do not count): its own file, its arms' configs, their recipes.

    Raises:
        UserError: There is no config of a name that one of them uses.
    """
    bench = yaml.safe_load(bench_path.read_text("utf-8"))
    waiting = {arm["config"] for arm in bench["arms"].values()} | registry.recipes_in(bench)
    content: dict[str, Any] = {}
    while waiting:
        stem = waiting.pop()
        if stem not in content:
            content[stem] = yaml.safe_load(registry.find_config(stem).read_text("utf-8"))
            waiting |= registry.recipes_in(content[stem])
    return hashlib.sha256(json.dumps([bench, sorted(content.items())], default=str).encode()).hexdigest()
