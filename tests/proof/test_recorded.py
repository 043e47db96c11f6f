"""Recorded proofs: judged again from their values, and as old as their configs."""

import json

import pytest

from kdzoo.proof.criteria import config_sha256, evaluate
from kdzoo.registry import config_files

RECORDED = {stem: path for stem, path in config_files().items() if path.with_suffix(".json").exists()}


@pytest.mark.parametrize("stem", sorted(RECORDED))
def test_recorded_proof(stem):
    recorded = json.loads(RECORDED[stem].with_suffix(".json").read_text("utf-8"))
    assert recorded["config_sha256"] == config_sha256(RECORDED[stem]), "run kdzoo bench again"
    criteria = evaluate(recorded)
    assert [row["passed"] for row in criteria] == [row["passed"] for row in recorded["criteria"]]
    for again, row in zip(criteria, recorded["criteria"]):
        assert again["value"] == pytest.approx(row["value"], abs=1e-5)
        assert again["bound95"] == pytest.approx(row["bound95"], abs=1e-5)
    assert recorded["passed"] == all(row["passed"] for row in criteria)


def test_every_proof_was_recorded():
    missing = [stem for stem in config_files("kdzoo") if stem.endswith("_bench") and stem not in RECORDED]
    assert not missing, f"run kdzoo bench {' '.join(stem.removesuffix('_bench') for stem in missing)}"
