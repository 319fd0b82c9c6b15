"""kill -9 at any moment of a real build, append or compact: every version that is there is whole and answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killing import Record, kill_one, ready
from memory_fixtures import append, build_until, compact, open_version, queries_at, wide_table

from memory_index.versions.opening import verify_contents
from memory_index.versions.store import Store
from memory_index.versions.version import verify

NAME = "m"


def build_and_grow_until_killed(indexes_dir: Path, log: Path, seed: int) -> None:
    """Build, append twice and compact, again and again; each version is logged once it is published."""
    table = wide_table(200, seed=seed % 1000)
    with log.open("a") as lines:

        def say(*words: object) -> None:
            lines.write(" ".join(map(str, words)) + "\n")
            lines.flush()

        store = Store(indexes_dir)
        ready()
        while True:
            version = build_until(store, table, table.series[0].times[119], name=NAME)
            say("published", version.number, version.manifest.fingerprint)
            for end in (150, 200):
                version = append(store, version.ref, wide_table(end, seed=seed % 1000))
                say("published", version.number, version.manifest.fingerprint)
            version = compact(store, version.ref)
            say("published", version.number, version.manifest.fingerprint)


def kill_builds(indexes_dir: Path, log: Path, *, num_kills: int, seed: int) -> int:
    """Returns how many kills left something of an unfinished version behind."""
    chance, store, num_hits = random.Random(seed), Store(indexes_dir), 0
    checked: set[int] = set()
    for _ in range(num_kills):
        kill_one(indexes_dir, log, chance, work=build_and_grow_until_killed, within_s=1.5)
        published = Record.read(log).published
        there = set(store.numbers(NAME)) if (indexes_dir / NAME).exists() else set()
        assert set(published) <= there, "a published version is gone"
        for number in sorted(there - checked):
            version = store.resolve(f"{NAME}@{number}")
            assert version.manifest.fingerprint == published.get(number, version.manifest.fingerprint)
            assert verify(version) == ()
            assert verify_contents(version) == []
            table = wide_table(200)
            assert open_version(version).search(queries_at(table, [199]), 3).valid.any()
            checked.add(number)
        if there or (indexes_dir / NAME).exists():
            num_hits += bool(store.gc(NAME).leftovers)
    assert checked, "no build was ever finished: the test proves nothing"
    return num_hits


def test_a_kill_at_any_moment_of_a_build_loses_nothing(tmp_path):
    kill_builds(tmp_path / "indexes", tmp_path / "log", num_kills=4, seed=3)


@pytest.mark.soak
def test_a_hundred_kills_of_builds_lose_nothing(tmp_path):
    num_hits = kill_builds(tmp_path / "indexes", tmp_path / "log", num_kills=100, seed=4)
    assert num_hits > 20, "hardly any kill hit a build: the test proves nothing"
