"""`report.html`: what a run achieved, in one file that opens anywhere."""

import base64
import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

from kdzoo.console import count
from kdzoo.files import write_text
from kdzoo.metrics.figures import BLUE, GREEN, INK, ORANGE, RED, styled

LINES = (BLUE, ORANGE, GREEN, RED, "#9a6fd0", "#b08a3e", "#3aa6a6", "#d46fa8")
TITLES = {"train": "Training loss", "val": "Validation", "lr": "Learning rate"}
PAGE = Path(__file__).with_name("page.html")


def write_report(run_dir: Path, result: Mapping[str, Any], figures: Mapping[str, Figure]) -> Path:
    """Write `report.html` into a run's folder, from its result, and its `metrics.csv` and `config.yaml` if any.

    Args:
        run_dir: the run's folder.
        result: what `result.json` will hold.
        figures: title -> figure, shown in this order after the curves.

    Returns:
        The path of the report; it replaces an older one in one step.
    """
    when = datetime.now().strftime("%Y-%m-%d %H:%M")
    body = [f"<h1>{escape(result['method'])}</h1>", f"<p>{when}, seed {result['seed']}, {result['steps']:,} steps</p>"]
    body += ["<h2>Result</h2>", result_table(result)]
    for title, figure in {**curves(run_dir / "metrics.csv"), **figures}.items():
        body += [f"<h2>{escape(title)}</h2>", f'<figure><img alt="{escape(title)}" src="{embed(figure)}"></figure>']
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    body += ["<h2>How it was made</h2>", f"<p>{escape(versions)}</p>"]
    if (config := run_dir / "config.yaml").exists():
        body.append(f"<details><summary>config.yaml</summary><pre>{escape(config.read_text('utf-8'))}</pre></details>")
    page, path = Template(PAGE.read_text("utf-8")), run_dir / "report.html"
    write_text(path, page.substitute(title=escape(f"{result['method']} · {when}"), body="\n".join(body)))
    return path


def result_table(result: Mapping[str, Any]) -> str:
    """Write the student's metrics and size beside the teacher's, and what the run cost, as HTML."""
    teacher = result["teacher"] or {}
    scores = teacher.get("scores", {})
    names = dict.fromkeys([*result["metrics"], *scores])
    rows = [(name, number(result["metrics"].get(name)), number(scores.get(name))) for name in names]
    rows.append(("parameters", count(result["trainable_params"]), count(teacher["parameters"]) if teacher else ""))
    costs = (("train seconds", "train_seconds"), ("CPU-seconds", "cpu_seconds"), ("peak memory, MB", "peak_mb"))
    rows += [(label, number(result[key]), "") for label, key in costs]
    lines = [f'<tr><td>{escape(name)}</td><td class="student">{own}</td><td>{its}</td></tr>' for name, own, its in rows]
    heading = "<th>student</th><th>teacher</th>" if teacher else "<th>result</th><th></th>"
    note = f"<p>teacher: {escape(teacher['source'])}, {escape(teacher['hash'])}</p>" if teacher else ""
    return f"<table><tr><th></th>{heading}</tr>{''.join(lines)}</table>{note}"


def number(value: float | None) -> str:
    """Write a number with four significant digits, nothing where there is none."""
    return "" if value is None else f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4g}"


def curves(path: Path) -> dict[str, Figure]:
    """Draw what `metrics.csv` (`epoch,step,name,value`) holds: training losses together, other metrics side by side.

    Names are grouped by what stands before their `/`; a name with a single value, or with zeros alone, is no curve.
    """
    families: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    with path.open(encoding="utf-8", newline="") if path.exists() else io.StringIO() as file:
        for row in csv.DictReader(file):
            family, _, _ = row["name"].rpartition("/")
            steps, values = families.setdefault(family, {}).setdefault(row["name"], ([], []))
            steps.append(int(row["step"]))
            values.append(float(row["value"]))
    drawn = {}
    for family, series in families.items():
        series = {name: points for name, points in series.items() if len(points[0]) > 1 and any(points[1])}
        if family == "train" and len(series) == 2:
            series.pop("train/loss", None)  # the same as its only term
        groups = [series] if family == "train" else [{name: points} for name, points in series.items()]
        if series:
            drawn[TITLES.get(family, family or "Others")] = _curves(groups)
    return drawn


def _curves(groups: Sequence[Mapping[str, tuple[list[int], list[float]]]]) -> Figure:
    columns = min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure, axes = styled(9, 3.2 * rows if columns < 3 else 2.6 * rows, rows, columns)
    for ax, group in zip(axes, groups):
        for i, (name, (steps, values)) in enumerate(group.items()):
            ax.plot(steps, values, color=LINES[i % len(LINES)], linewidth=1.6, label=name.rpartition("/")[2])
        if len(group) > 1:
            ax.legend(frameon=False, labelcolor=INK, fontsize=9)
        elif len(groups) > 1 or not name.rpartition("/")[2].isdigit():  # the number of the only optimizer says nothing
            ax.set_title(name.rpartition("/")[2], color=INK, fontsize=10)
        ax.set_xlabel("step")
    for ax in axes[len(groups) :]:
        ax.set_axis_off()
    return figure


def embed(figure: Figure) -> str:
    """Turn a figure into a data URL: an SVG whose `INK` follows the page's light or dark."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class name in a script that matplotlib's font lacks
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    style = "<style>svg{color:#1d2126}@media(prefers-color-scheme:dark){svg{color:#e4e7ea}}</style>"
    head, start, rest = buffer.getvalue().replace(INK, "currentColor").partition("<defs>")
    return "data:image/svg+xml;base64," + base64.b64encode(f"{head}{style}{start}{rest}".encode()).decode()
