"""How much faster two processes fill a store, and a buffer of experts, than one, each with one thread.

python tests/bench/fill.py [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

BOUND = 0.6
ROUNDS = 3


def work(what: str, result: str, teacher: str) -> None:
    """One rank: fit for one step, and note how long the filling took."""
    from lightning import Trainer

    from kdzoo.console import quieten
    from kdzoo.datamodules.fashion_mnist import FashionMNIST
    from kdzoo.dataset.experts import Experts
    from kdzoo.dataset.mtt import MTT
    from kdzoo.image.kd import KD
    from kdzoo.teachers.fill import Filling
    from kdzoo.teachers.sources import Teacher
    from kdzoo.trajectories.buffer import Buffer

    quieten()
    filler: Any = Filling if what == "store" else Buffer
    fill, seconds = filler.fill, []

    def timed(*arguments: object) -> None:
        begin = time.perf_counter()
        fill(*arguments)
        seconds.append(time.perf_counter() - begin)

    filler.fill = timed
    world = int(os.environ.get("WORLD_SIZE", 1))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    method = (
        KD(student="cnn_14k", teacher=Teacher(checkpoint=teacher, store="fp16", views=1))
        if what == "store"
        else MTT(ipc=1, width=16, zca=False, max_start=1, expert_epochs=1, experts=Experts(count=8, epochs=1))
    )
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

    seconds: dict[str, dict[int, list[float]]] = {"store": {1: [], 2: []}, "experts": {1: [], 2: []}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_image_network(build("cifar_resnet20", FashionMNIST().spec), FashionMNIST().spec, folder / "teacher")
        for number in range(ROUNDS):
            for what, world in product(seconds, (1, 2)):
                launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] * (world == 2)
                command = [sys.executable, *launcher, __file__, "--rank", what, str(folder / "s")]
                cache = str(folder / f"cache{number}{world}")
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "KDZOO_CACHE": cache}
                subprocess.run([*command, str(folder / "teacher")], env=environment, check=True, capture_output=True)
                seconds[what][world].append(float((folder / "s").read_text()))
    ratios = {what: min(found[2]) / min(found[1]) for what, found in seconds.items()}
    for what, found in seconds.items():
        one, two = min(found[1]), min(found[2])
        print(f"{what}: one process {one:.2f} s, two {two:.2f} s: ratio {ratios[what]:.2f}, bound {BOUND}")
    passed = max(ratios.values()) <= BOUND
    if options.json:
        record = {
            "ratios": {f"{what}: two / one": r for what, r in ratios.items()},
            "seconds": seconds,
            "passed": passed,
        }
        options.json.write_text(json.dumps(record, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        work(*sys.argv[2:])
    else:
        sys.exit(main())
