"""How recorded results are written: the terminal's table after `kdzoo bench`, and the README's."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdzoo.errors import UserError
from kdzoo.proof.criteria import COSTS, compare, config_sha256


def show(console: Console, recorded: Mapping[str, Any]) -> None:
    """Print the table of arms, one line for each criterion and one for each further row."""
    reference = next((row["minus"] for row in recorded["criteria"] if "minus" in row), None)
    table = Table("arm", box=None, pad_edge=False, header_style="bold")
    for i, metric in enumerate(recorded["metrics"]):
        table.add_column(escape(metric))
        if reference and i == 0:  # the other metrics' differences stand below: a terminal is 80 columns wide
            table.add_column(escape(f"vs {reference} [95 %]"))
    for heading in ("train s", "cpu-s", "peak MB", "params"):
        table.add_column(heading, justify="right")
    for name, arm in recorded["arms"].items():
        cells = [spread(recorded, name, metric) for metric in recorded["metrics"]]
        if reference:
            row = {"metric": recorded["metrics"][0], "left": name, "minus": reference}
            cells.insert(1, "-" if name == reference else effect(recorded, row))
        formats = {cost: ",.1f" if cost.endswith("seconds") else ",.0f" for cost in COSTS}
        costs = ["-" if arm[cost] is None else format(arm[cost], form) for cost, form in formats.items()]
        table.add_row(*map(escape, (name, *cells, *costs)))
    console.print(table, highlight=False)
    seeds = len(recorded["seeds"])
    for row in recorded["criteria"]:
        bound = f">= {row['at_least']}" if "at_least" in row else f"<= {row['at_most']}"
        line = f"{describe(recorded, row)} {bound}: {verdict(row)}, {effect(recorded, row)} ({seeds} paired seeds)"
        console.print(line, markup=False, highlight=False)
    for row in recorded["rows"]:
        console.print(f"{describe(recorded, row)}: {effect(recorded, row)}", markup=False, highlight=False)


def markdown(family: str | None, names: Sequence[str] = ()) -> str:
    """Write the README's table: a line for each recorded `*_bench.json`, of one `family` or all, of `names` or all."""
    from kdzoo.card import read_card
    from kdzoo.registry import METHODS, config_files, entries

    methods = entries(METHODS)
    lines = ["| method | paper | arms | difference [95 %] | proof |", "|---|---|---|---|---|"]
    for stem, path in sorted(config_files().items()):
        file, name = path.with_suffix(".json"), stem.removesuffix("_bench")
        if not stem.endswith("_bench") or not file.exists() or (names and name not in names):
            continue
        recorded = json.loads(file.read_text("utf-8"))
        try:
            card = read_card(methods[recorded["method"]]).card if recorded["method"] in methods else None
        except UserError:  # a plugin's unreadable source costs its title, not the table
            card = None
        if family and (card is None or card.family != family):
            continue
        metric = recorded["metrics"][0]
        arms = ", ".join(f"{arm} {spread(recorded, arm, metric)}" for arm in recorded["arms"])
        shown = [*recorded["criteria"], *recorded["rows"]]
        rows = [f"{describe(recorded, row)}: {effect(recorded, row)}" for row in shown]
        proof = verdict(recorded) if recorded["config_sha256"] == config_sha256(path) else "outdated"
        cells = [name, card.title if card else "", f"{metric}: {arms}", "<br>".join(rows), proof]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def describe(recorded: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Write a criterion or row as `kd - ce`, after its metric where there are several."""
    pair = f"{row['left']} - {row['minus']}" if "minus" in row else f"{row['left']} / {row['ratio_to']}"
    pair = f"{row['label']}: {pair}" if "label" in row else pair
    return f"{row['metric']}: {pair}" if len(recorded["metrics"]) > 1 else pair


def effect(recorded: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Write the difference or ratio that `row` asks for, with its interval."""
    found = compare(recorded["arms"], row)
    if math.isnan(found.mean):
        return "-"
    form = f"+.{digits(recorded, row['metric'])}f" if "minus" in row else ".3f"
    ends = "" if math.isnan(found.lower) else f" [{found.lower:{form}}, {found.upper:{form}}]"
    return f"{found.mean:{form}}{ends}"


def spread(recorded: Mapping[str, Any], arm: str, metric: str) -> str:
    """Write an arm's mean ± standard deviation."""
    mean, std, n = *(recorded["arms"][arm][key][metric] for key in ("mean", "std")), digits(recorded, metric)
    return "-" if mean is None else f"{mean:.{n}f}" + ("" if std is None else f" ± {std:.{n}f}")


def digits(recorded: Mapping[str, Any], metric: str) -> int:
    """Choose the decimals of `metric`: two for percents and the like, four for small numbers."""
    means = [abs(arm["mean"][metric] or 0.0) for arm in recorded["arms"].values()]
    return 2 if max(means) >= 10 else 4


def verdict(row: Mapping[str, Any]) -> str:
    """Put `passed` of a judged criterion, or of a whole result, into words."""
    return {True: "passed", False: "not reached", None: "not judged"}[row["passed"]]
