"""Every conversion between the four radiance fields: how good the student is, and how soon it is as good as without.

    python tests/bench/pvd_matrix.py [--json FILE]

On the scene of `pvd_al_tiny` each field is trained on photographs, in many steps (the teachers) and in few (what a
student has to beat); then each teacher teaches each field, its own kind too, in as many steps as that field's baseline
had and at the same learning rate: the published one is for 30,000 steps, and in so few `tensors` and `mlp` need a
larger one. A look at two validation views every tenth of a run says when a conversion has reached the baseline's last
validation score; CPU-seconds are those of training alone, on one thread. PSNR is that of the twelve test views. One
seed.

Ten minutes on an idle core. With a FILE, each result is written there when it is ready, and a second call goes on.
`--table` prints what is recorded.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_suffix(".json")
SIZES = {
    "hash": {"levels": 8, "table": 14, "finest": 168},
    "mlp": {"octaves": 8, "layers": 4, "width": 128, "skip": 1},
    "vm": {"resolution": 96, "density_rank": 8, "colour_rank": 16},
    "tensors": {"resolution": 64},
}
STEPS = {"hash": 400, "mlp": 600, "vm": 400, "tensors": 400}
TEACHER_STEPS = {"hash": 1000, "mlp": 1500, "vm": 1000, "tensors": 1000}
RATES = {"hash": 0.01, "mlp": 0.03, "vm": 0.01, "tensors": 0.1}  # published: 0.01 for all, in 30,000 steps
LOOKS = 10  # at the validation views, in a run


def train(method: Any, steps: int, looks: int) -> dict[str, Any]:
    """Train a method, and return `psnr`, the teacher's scores where there is one, `cpu_seconds` and the `looks`."""
    from lightning import Callback, Trainer, seed_everything

    from kdzoo.datamodules.mesh_scene import MeshScene

    class Clock(Callback):
        """CPU-seconds of training alone, and the validation score that they have brought."""

        looks: list[tuple[float, float]]
        start = paused = 0.0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.looks, self.start = [], time.process_time()

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.paused = time.process_time()

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            spent = self.paused - self.start
            self.looks.append((round(spent, 2), round(float(trainer.callback_metrics["val/psnr"]), 2)))
            self.start += time.process_time() - self.paused

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.spent = time.process_time() - self.start

    seed_everything(0, verbose=False)
    clock, data = Clock(), MeshScene(batch_size=512, validation=2)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"limit_val_batches": 1.0 if looks else 0, "num_sanity_val_steps": 0, "check_val_every_n_epoch": None}
    options |= {"val_check_interval": steps // max(1, looks), "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=-1, max_steps=steps, callbacks=[clock], **options)
    trainer.fit(method, datamodule=data)
    scores = trainer.test(method, datamodule=data, verbose=False)[0]
    found: dict[str, Any] = {name.removeprefix("test/"): round(value, 2) for name, value in scores.items()}
    return {**found, "cpu_seconds": round(clock.spent, 1), "looks": clock.looks}


def measure(file: Path | None) -> dict[str, Any]:
    """Train everything that `file` has no result of."""
    import torch

    from kdzoo.console import quieten
    from kdzoo.files import cache_dir, write_text
    from kdzoo.nerf.pvd_al import PVDAL
    from kdzoo.nerf.radiance_field import RadianceField
    from kdzoo.teachers.recipe import read_config
    from kdzoo.teachers.sources import Teacher

    quieten()
    torch.set_num_threads(1)
    tiny = read_config("pvd_al_tiny", {})["model"]["init_args"]
    pools = {key: tiny[key] for key in ("poses", "pose_pool", "ray_pool")}
    settings = {"steps": STEPS, "teacher_steps": TEACHER_STEPS, "rates": RATES, "sizes": SIZES}
    found: dict[str, Any] = {**settings, "teachers": {}, "images": {}, "conversions": {}}
    if file and file.exists() and settings.items() <= (before := json.loads(file.read_text())).items():
        found = before

    def keep(part: dict[str, Any], name: str, result: dict[str, Any]) -> None:
        part[name] = result
        if file:
            write_text(file, json.dumps(found, indent=1) + "\n")

    folder = cache_dir() / "pvd_matrix"  # where the teachers are
    method: Any
    for field, sizes in SIZES.items():
        options: dict[str, Any] = {"steps": 96, "grid": 48, "mesh": 0, "frames": 0, "lr": RATES[field]}
        if field not in found["teachers"]:
            method = RadianceField(field, sizes, **options)
            result = train(method, TEACHER_STEPS[field], 0)
            method.export(folder / field)
            keep(found["teachers"], field, result)
        if field not in found["images"]:
            keep(found["images"], field, train(RadianceField(field, sizes, **options), STEPS[field], LOOKS))
    for teacher in SIZES:
        row = found["conversions"].setdefault(teacher, {})
        for field, sizes in SIZES.items():
            if field in row:
                continue
            source = Teacher(checkpoint=str(folder / teacher))
            method = PVDAL(source, field, sizes, mesh=0, frames=0, lr=RATES[field], **pools)
            result = train(method, STEPS[field], LOOKS)
            bound = found["images"][field]["looks"][-1][1]
            result["reached"] = next((spent for spent, score in result["looks"] if score >= bound), None)
            keep(row, field, result)
            print(f"{teacher} -> {field}: {cell(result)}", flush=True)
    return found


def cell(result: dict[str, Any]) -> str:
    """A conversion in a few words."""
    reached = "never" if result["reached"] is None else f"{result['reached']:.1f} s"
    return f"{result['psnr']:.1f} / {result['psnr_teacher']:.1f} dB, {reached} of {result['cpu_seconds']:.0f}"


def markdown(record: dict[str, Any]) -> str:
    """The table of the README: a row for each teacher, a column for each student."""
    fields = list(record["images"])
    lines = [f"| teacher | {' | '.join(f'to `{field}`' for field in fields)} |", "|---" * (len(fields) + 1) + "|"]
    images = [f"{each['psnr']:.1f} dB in {each['cpu_seconds']:.0f} s" for each in record["images"].values()]
    lines.append(f"| none: photographs | {' | '.join(images)} |")
    for teacher, row in record["conversions"].items():
        cells = " | ".join(cell(row[field]) for field in fields)
        lines.append(f"| `{teacher}`, {record['teachers'][teacher]['psnr']:.1f} dB | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print, or print what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    record = json.loads(RECORD.read_text()) if options.table else measure(options.json)
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
