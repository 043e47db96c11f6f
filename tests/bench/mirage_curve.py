"""How good a network is that mirage's patterns train, by how many bytes they take, beside random molecules in as many.

    python tests/bench/mirage_curve.py [--json FILE] [--picture FILE]

Data, networks and steps are those of `kdzoo bench mirage`, over its five splits; its arm of all molecules is the upper
end, taken from its record. The support is the largest of 0.2, 0.15 and 0.1 whose patterns fill the bytes. AUC is that
of the test molecules, in percent. With a FILE, each result is written there when it is ready, and a second call goes
on. `--table` prints what is recorded, `--picture` draws it.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import yaml

RECORD = Path(__file__).with_suffix(".json")
BENCH = Path(__file__).parents[2] / "configs" / "graph" / "mirage_bench.yaml"
SUPPORTS = {25_000: 0.2, 100_000: 0.15, 1_000_000: 0.1, 2_600_000: 0.1}  # bytes -> support
Scores = dict[str, dict[str, dict[str, dict[str, float]]]]  # arm -> bytes -> seed -> scores


def train(arm: str, size: int, seed: int) -> dict[str, float]:
    """Train an arm of the bench at another size: `auc` of the test molecules and `bytes` that were used."""
    from lightning import Trainer, seed_everything

    from kdzoo import registry
    from kdzoo.teachers.recipe import read_config

    seed_everything(seed, verbose=False)
    how = yaml.safe_load(BENCH.read_text())["arms"][arm]
    settings = {**how["set"], "model.init_args.bytes": size}
    if arm == "mirage":
        settings["model.init_args.support"] = SUPPORTS[size]
    config = read_config(how["config"], settings)
    method, data = (
        registry.find(group, config[key]["class_path"]).load()(**config[key]["init_args"])
        for group, key in ((registry.METHODS, "model"), (registry.DATA, "data"))
    )
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(**config["trainer"], **options, enable_model_summary=False)
    trainer.fit(method, datamodule=data)
    scores = trainer.test(method, datamodule=data, verbose=False)[0]
    return {"auc": round(scores["test/auc"], 3), "bytes": scores["test/bytes"]}


def measure(file: Path | None) -> Scores:
    """Train everything that `file` has no result of."""
    import torch

    from kdzoo.console import quieten
    from kdzoo.files import write_text

    quieten()
    torch.set_num_threads(1)
    found: Scores = json.loads(file.read_text()) if file and file.exists() else {"random": {}, "mirage": {}}
    for seed in yaml.safe_load(BENCH.read_text())["seeds"]:
        for size in SUPPORTS:
            for arm, sizes in found.items():
                of_size = sizes.setdefault(str(size), {})
                if str(seed) in of_size:
                    continue
                of_size[str(seed)] = train(arm, size, seed)
                print(f"{arm}, {size:,} bytes, seed {seed}: {of_size[str(seed)]['auc']:.2f}", flush=True)
                if file:
                    write_text(file, json.dumps(found, indent=1) + "\n")
    return found


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def curve(sizes: dict[str, dict[str, dict[str, float]]]) -> list[tuple[float, float, float]]:
    """Bytes, mean AUC and standard deviation at each size."""
    points = []
    for of_seed in sizes.values():
        used = statistics.fmean(each["bytes"] for each in of_seed.values())
        points.append((used, *spread([each["auc"] for each in of_seed.values()])))
    return points


def all_molecules() -> tuple[float, float]:
    """AUC of all molecules as `kdzoo bench mirage` has recorded it."""
    return spread(json.loads(BENCH.with_suffix(".json").read_text())["arms"]["all"]["values"]["test/auc"])


def markdown(record: Scores) -> str:
    """The table of the README: a column for each size."""
    whole = "{:.1f} ± {:.1f}".format(*all_molecules())
    heads = [f"{size / 1000:,.0f} kB" for size in SUPPORTS]
    lines = [f"| trained on | {' | '.join(heads)} | all, 13,060 kB |", "|---" * (len(heads) + 2) + "|"]
    for arm, name in (("mirage", "patterns of `mirage`"), ("random", "random molecules")):
        cells = " | ".join(f"{mean:.1f} ± {std:.1f}" for _, mean, std in curve(record[arm]))
        lines.append(f"| {name} | {cells} | {whole if arm == 'random' else ''} |")
    return "\n".join(lines) + "\n"


def draw(record: Scores, file: Path) -> None:
    """Draw the curves."""
    from kdzoo.metrics.figures import BLUE, INK, ORANGE, styled

    figure, (ax,) = styled(6, 3.6)
    for arm, colour in (("mirage", BLUE), ("random", ORANGE)):
        used, mean, std = zip(*curve(record[arm]))
        ax.errorbar(used, mean, std, color=colour, marker="o", markersize=4, capsize=3, label=arm)
    ax.axhline(all_molecules()[0], color=INK, linewidth=1, linestyle=":", label="all molecules")
    ax.set_xscale("log")
    ax.set_xlabel("bytes of the training set")
    ax.set_ylabel("test AUC, %")
    ax.legend(frameon=False, labelcolor=INK)
    figure.savefig(file, facecolor="white")


def main() -> int:
    """Measure and print, or print what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    recorded = options.table or options.picture
    record = json.loads(RECORD.read_text()) if recorded else measure(options.json)
    if options.picture:
        draw(record, options.picture)
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
