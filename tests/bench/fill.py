"""How much faster two processes fill a store than one, each with one thread.

python tests/bench/fill.py [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUND = 0.6
ROUNDS = 3


def work(result: str, teacher: str) -> None:
    """One rank: fit for one step, and note how long the filling took."""
    from lightning import Trainer

    from kdzoo.console import quieten
    from kdzoo.datamodules.fashion_mnist import FashionMNIST
    from kdzoo.image.kd import KD
    from kdzoo.teachers.fill import Filling
    from kdzoo.teachers.sources import Teacher

    quieten()
    fill, seconds = Filling.fill, []

    def timed(self: Filling, *arguments: object) -> None:
        begin = time.perf_counter()
        fill(self, *arguments)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - begin)

    Filling.fill = timed  # type: ignore[method-assign]
    world = int(os.environ.get("WORLD_SIZE", 1))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    method = KD(student="cnn_14k", teacher=Teacher(checkpoint=teacher, store="fp16", views=1))
    trainer = Trainer(max_steps=1, accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", **options)
    trainer.fit(method, datamodule=FashionMNIST())
    if trainer.is_global_zero:
        Path(result).write_text(str(seconds[0]))


def main() -> int:
    """Run both a few times, in turn, and compare the shortest times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from kdzoo.datamodules.fashion_mnist import FashionMNIST
    from kdzoo.export.image import export_image_network
    from kdzoo.students.build import build

    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_image_network(build("cifar_resnet20", FashionMNIST().spec), FashionMNIST().spec, folder / "teacher")
        for number in range(ROUNDS):
            for world, found in seconds.items():
                launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] * (world == 2)
                command = [sys.executable, *launcher, __file__, "--rank", str(folder / "s"), str(folder / "teacher")]
                cache = str(folder / f"cache{number}{world}")
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "KDZOO_CACHE": cache}
                subprocess.run(command, env=environment, check=True, capture_output=True)
                found.append(float((folder / "s").read_text()))
    ratio = min(seconds[2]) / min(seconds[1])
    print(f"one process {min(seconds[1]):.2f} s, two {min(seconds[2]):.2f} s: ratio {ratio:.2f}, bound {BOUND}")
    if options.json:
        record = {"ratios": {"two / one": ratio}, "seconds": seconds, "passed": ratio <= BOUND}
        options.json.write_text(json.dumps(record, indent=1))
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        work(*sys.argv[2:])
    else:
        sys.exit(main())
