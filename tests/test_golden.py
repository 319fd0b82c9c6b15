"""Versions of every format that was ever published open, verify and answer as they did: see make_golden.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from make_golden import ANSWERS, ANSWERS_OF_HOLES, GOLDEN, HOLES, INDEXED, NAME, answers, table_with_holes
from memory_fixtures import Store, append, between, compact, open_version, wide_table

from memory_index.versions.manifest import FORMAT
from memory_index.versions.opening import verify_contents
from memory_index.versions.version import verify

FORMATS = sorted(path.name for path in GOLDEN.glob("format-*"))
VERSIONS = sorted((path.parent.name, path.name) for path in GOLDEN.glob("format-*/*") if path.is_dir())


def test_every_format_has_a_golden_version() -> None:
    assert sorted(f"format-{number}" for number in range(1, FORMAT + 1)) == FORMATS
    assert {index for name, index in VERSIONS if name == f"format-{FORMAT}"} == {NAME, HOLES, *INDEXED}


@pytest.mark.parametrize(("name", "index"), VERSIONS)
def test_a_golden_version_opens_and_answers_as_it_did(name: str, index: str) -> None:
    version = Store(GOLDEN / name).resolve(index)
    assert version.manifest.format == int(name.removeprefix("format-"))
    stored = (version.path / "manifest.json").read_text()
    assert version.manifest.to_json() == stored  # fields that came later are not in it: its fingerprint stays
    assert verify(version) == ()
    assert verify_contents(version) == []
    found, expected = answers(open_version(version)), _expected(name, index)
    assert found.keys() == expected.keys()
    for asked, answer in expected.items():
        np.testing.assert_allclose(found[asked]["distance"], answer["distance"], rtol=1e-4, atol=1e-4, err_msg=asked)
        # Another processor may round a key otherwise, and swap rows at (almost) the same distance.
        assert (np.array(found[asked]["row"]) == np.array(answer["row"])).mean() > 0.95, asked
        close = np.isclose(found[asked]["forecast"], answer["forecast"], rtol=1e-3, atol=1e-2)
        assert close.mean() > 0.95, asked


def _expected(name: str, index: str) -> dict[str, dict[str, list[object]]]:
    of_index: dict[str, dict[str, list[object]]] = json.loads(
        (GOLDEN / name / (ANSWERS_OF_HOLES if index == HOLES else ANSWERS)).read_text()
    )
    return of_index


@pytest.mark.parametrize(("name", "index"), VERSIONS)
def test_a_golden_version_can_grow(name: str, index: str, tmp_path: Path) -> None:
    """In a copy, as its owner would: the files of a checkout may be writable, and stay as they are."""
    store = Store(tmp_path)
    golden = Store(GOLDEN / name).resolve(index)
    with store.staging(index) as staging:
        staging.adopt(golden, *sorted({path.split("/")[0] for path in golden.manifest.files}))
        copied = staging.publish(golden.manifest)
    table = table_with_holes() if index == HOLES else wide_table()
    grown = append(store, copied.ref, between(table, 0, 160))
    assert (len(grown.manifest.segments), grown.manifest.format) == (3, FORMAT)
    assert verify_contents(compact(store, grown.ref)) == []


def test_a_golden_version_is_small() -> None:
    for path in GOLDEN.glob("format-*/*/"):
        assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 300_000
