"""How recorded results are written: the terminal's table after `kdzoo bench`, and the README's."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdzoo.errors import UserError
from kdzoo.proof.criteria import COSTS, TEACHER, compare, config_sha256

ALIKE = 3  # so many benches with the same runs of a baseline are one table


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


@dataclass(frozen=True)
class Proof:
    """A recorded result, and what the page says of it: `verdict` is `outdated` where its config has changed since."""

    name: str
    family: str
    paper: str
    verdict: str
    recorded: Mapping[str, Any]

    @property
    def subject(self) -> str:
        """The arm that is to show something."""
        return str(self.recorded["criteria"][0]["left"])

    @property
    def reference(self) -> str:
        """The arm that it is compared with first."""
        row = self.recorded["criteria"][0]
        return str(row["minus"] if "minus" in row else row["ratio_to"])


def proofs(family: str | None, names: Sequence[str] = ()) -> list[Proof]:
    """Read each recorded `*_bench.json`, of one `family` or all, of `names` or all; in the order of the families."""
    from kdzoo.card import read_card
    from kdzoo.registry import METHODS, config_files, entries

    methods = entries(METHODS)
    found = []
    for stem, path in config_files().items():
        file, name = path.with_suffix(".json"), stem.removesuffix("_bench")
        if not stem.endswith("_bench") or not file.exists() or (names and name not in names):
            continue
        recorded = json.loads(file.read_text("utf-8"))
        try:
            card = read_card(methods[recorded["method"]]).card if recorded["method"] in methods else None
        except UserError:  # a plugin's unreadable source costs its title, not the table
            card = None
        said = verdict(recorded) if recorded["config_sha256"] == config_sha256(path) else "outdated"
        paper = (
            f"[{card.title}](https://arxiv.org/abs/{card.arxiv})" if card and card.arxiv else card.title if card else ""
        )
        found.append(Proof(name, card.family if card else "other", paper, said, recorded))
    return sorted((proof for proof in found if family in (None, proof.family)), key=lambda p: (p.family, p.name))


def markdown(family: str | None, names: Sequence[str] = ()) -> str:
    """Write the README's tables of recorded results.

    For each family: one for the methods that were compared with a baseline of the same scores, seed by seed, if there
    are three such or more, and one with a line for each other bench.
    """
    parts = []
    for name, found in groupby(proofs(family, names), lambda proof: proof.family):
        alike: dict[str, list[Proof]] = {}
        for proof in found:
            recorded, metric = proof.recorded, proof.recorded["metrics"][0]  # others may be times, never alike
            scores = recorded["arms"][proof.reference]["values"][metric]
            baseline = json.dumps([proof.reference, recorded["seeds"], recorded["metrics"], scores])
            alike.setdefault(baseline, []).append(proof)
        parts.append(f"### {name}")
        parts += [side_by_side(group) for group in alike.values() if len(group) >= ALIKE]
        alone = [proof for group in alike.values() if len(group) < ALIKE for proof in group]
        if alone:
            parts.append(one_by_one(sorted(alone, key=lambda proof: proof.name)))
    return "\n\n".join(parts)


def side_by_side(group: Sequence[Proof]) -> str:
    """Write a table: a line for each shared baseline and each method; costs are CPU-seconds over the first's."""
    first = group[0]
    metrics, reference = first.recorded["metrics"], first.reference
    heads = (f"- {reference} [95 %]", "cost", "further", "proof")
    lines = [[f"method ({len(first.recorded['seeds'])} seeds)", *metrics, *heads]]

    def line(name: str, arm: str, proof: Proof, rows: Sequence[Mapping[str, Any]], said: str) -> list[str]:
        found = proof.recorded
        gain = {"metric": metrics[0], "left": arm, "minus": reference}
        further = "<br>".join(f"{row.get('label') or describe(found, row)}: {effect(found, row)}" for row in rows)
        cost = found["arms"][arm]["cpu_seconds"] / found["arms"][reference]["cpu_seconds"]
        scores = (spread(found, arm, metric) for metric in metrics)
        return [name, *scores, "" if arm == reference else effect(found, gain), f"{cost:.2f}", further, said]

    runs: dict[str, tuple[str, list[Proof]]] = {}  # an arm's name and values -> the name, and the benches that have it
    for proof in group:
        for arm, found in proof.recorded["arms"].items():
            runs.setdefault(json.dumps([arm, found["values"][metrics[0]]]), (arm, []))[1].append(proof)
    for arm, having in runs.values():
        if arm != TEACHER and len(having) >= ALIKE:
            lines.append(line(arm, arm, having[0], [], ""))
    for proof in sorted(group, key=lambda p: -(p.recorded["arms"][p.subject]["mean"][metrics[0]] or -math.inf)):
        rows = [*proof.recorded["criteria"][1:], *proof.recorded["rows"]]
        lines.append(line(proof.name, proof.subject, proof, rows, proof.verdict))
    return _table(lines)


def one_by_one(found: Sequence[Proof]) -> str:
    """Write a table with a line for each bench: its arms, its criteria and its further differences."""
    lines = [["method", "paper", "arms", "difference [95 %]", "proof"]]
    for proof in found:
        recorded = proof.recorded
        metric = recorded["metrics"][0]
        arms = ", ".join(f"{arm} {spread(recorded, arm, metric)}" for arm in recorded["arms"])
        rows = [
            f"{describe(recorded, row)}: {effect(recorded, row)}" for row in [*recorded["criteria"], *recorded["rows"]]
        ]
        lines.append([proof.name, proof.paper, f"{metric}: {arms}", "<br>".join(rows), proof.verdict])
    return _table(lines)


def _table(lines: list[list[str]]) -> str:
    """Markdown, of a head and lines."""
    head, *rest = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])


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
