"""The files of keys: plain FAISS opens them and finds the same, the search reads them in place, older ones stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from fake_memory import FakeMemory
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_fixtures import (
    NUM_STEPS,
    Policy,
    Store,
    append,
    appended,
    assert_same,
    build_until,
    built,
    compact,
    key_files,
    open_version,
    queries_at,
    search,
    use_indexes,
    wide_table,
)

from memory_index.errors import UsageError, VerificationError
from memory_index.files import write_array
from memory_index.search import KeyGroup, Ranges
from memory_index.types import KeySpace
from memory_index.versions.opening import verify_contents
from memory_index.versions.version import verify

SPACE = KeySpace("own", 12)
GRAPHS = ("HNSW16", "NSG8")
OTHERS = ("IVF4,Flat", "IVF2,SQ8", "SQ8", "PQ2x4", "PCA4,IVF2,Flat", "IVF2,SQ8,RFlat", "HNSW8_SQ8")


def some_keys(num: int = 700, width: int = 8, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, width)).astype(np.float32)


def written(folder: Path, keys: np.ndarray, factory: str = "Flat") -> Path:
    key_files.write_keys(folder, SPACE, keys, factory)
    return key_files.keys_path(folder, SPACE)


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


@given(num=st.integers(0, 40), width=st.integers(1, 70))
@settings(max_examples=25)
def test_a_flat_file_is_what_faiss_writes_itself(
    num: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = some_keys(num, width)
    folder = tmp_path_factory.mktemp("flat")
    path = written(folder, keys)
    index = faiss.IndexFlatL2(width)
    index.add(keys)
    nested = [index]
    for _ in range(3):
        nested.append(faiss.IndexPreTransform(nested[-1]))
    assert path.read_bytes() == faiss.serialize_index(nested[-1]).tobytes()
    found = key_files.read_keys(folder, SPACE)
    np.testing.assert_array_equal(found, keys)
    assert found.flags.aligned
    assert not found.flags.writeable
    assert found.dtype == np.float32


@pytest.mark.parametrize("factory", [*GRAPHS, *OTHERS])
def test_the_index_asked_for_is_in_the_file_with_its_keys_once(factory: str, tmp_path: Path) -> None:
    keys = some_keys()
    path = written(tmp_path, keys, factory)
    found = key_files.read_keys(tmp_path, SPACE)
    np.testing.assert_array_equal(found, keys)
    assert found.flags.aligned
    assert not found.flags.writeable
    assert path.read_bytes().count(keys.tobytes()) == 1
    assert str(path) in mapped_files()
    alone = faiss.index_factory(8, factory)
    alone.train(keys)
    alone.add(keys)
    beside = 0 if factory in GRAPHS or "RFlat" in factory else keys.nbytes
    assert path.stat().st_size <= len(faiss.serialize_index(alone)) + beside + 300
    searched = key_files._open_index(path).index
    assert type(searched) is type(faiss.downcast_index(alone.base_index) if "RFlat" in factory else alone)
    assert faiss.read_index(str(path)).ntotal == len(keys)
    keys_alone = found[10:20]
    del found, searched
    assert np.isfinite(keys_alone).all()  # a part of the keys keeps the file mapped


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF2,SQ8"])
def test_plain_faiss_finds_what_the_search_finds_without_a_guard(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_indexes(monkeypatch)
    version = appended(tmp_path, built(tmp_path, factory=factory), 320)
    memory = open_version(version)
    agreed, compared = 0, 0
    for record, segment in zip(version.manifest.segments, memory.segments, strict=True):
        for space, groups in segment.groups.items():
            index = faiss.read_index(str(version.path / record.folder / f"keys-{space}.faiss"))
            assert index.ntotal == sum(len(group) for group in groups)
            start = 0
            for group in groups:
                queries, k = group.keys[::7] + np.float32(0.01), min(5, len(group))
                within = faiss.IDSelectorRange(start, start + len(group))
                squared, rows = index.search(queries, k, params=parameters(index, within))
                num = np.full(len(queries), len(group))
                ours, our_rows = search.search_group(group, queries, Ranges(0, num, num, len(group)), k)
                alike = np.isclose(squared, ours, rtol=1e-4, atol=1e-4)
                if factory == "Flat":  # the same rows too, but where several are as near
                    alike &= (rows - start == our_rows) | np.isclose(np.diff(ours, append=np.inf), 0, atol=1e-4)
                agreed += int(alike.sum())
                compared += ours.size
                start += len(group)
    assert compared > 2000
    assert agreed / compared > {"Flat": 0.999, "HNSW16": 0.95, "IVF2,SQ8": 0.8}[factory]


def parameters(index: faiss.Index, within: faiss.IDSelector) -> faiss.SearchParameters:
    """What a person who has only FAISS would write."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexRefine):
        return faiss.IndexRefineSearchParameters(
            k_factor=4, base_index_params=faiss.SearchParametersIVF(sel=within, nprobe=2)
        )
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=within, efSearch=256)
    return faiss.SearchParameters(sel=within)


def test_many_series_make_no_more_files(tmp_path: Path) -> None:
    few, table = built(tmp_path, scopes=("own", "pooled"), factory="HNSW8"), wide_table(60)
    series = tuple(replace(table.series[number % 3], series_id=f"s{number}") for number in range(300))
    many = build_until(
        Store(tmp_path),
        replace(table, series=series),
        table.series[0].times[-1],
        scopes=("own", "pooled"),
        factory="HNSW8",
    )
    assert few.manifest.files.keys() == many.manifest.files.keys()


@pytest.mark.parametrize("policy", Policy)
def test_one_index_over_all_groups_serves_each_of_them(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_indexes(monkeypatch)
    memory = open_version(built(tmp_path, factory="HNSW16"))
    groups = memory.segments[0].groups[KeySpace("own", 12)]
    assert len({id(group.index.faiss_index) for group in groups}) == 1 < len(groups)
    asked = queries_at(wide_table(), range(60, NUM_STEPS, 4), policy)
    found, expected = (m.search(asked, 5, scopes=("own",)) for m in (memory, FakeMemory.of(memory)))
    np.testing.assert_array_equal(found.valid, expected.valid)
    assert np.isclose(found.distance, expected.distance, rtol=1e-3)[found.valid].mean() > 0.95
    monkeypatch.setattr(search, "scan", lambda *_, **__: pytest.fail("scanned"))
    last = queries_at(wide_table(), [NUM_STEPS - 1], series=["load"])
    assert memory.search(last, 5, scopes=("own",)).valid.all()


def test_groups_that_are_a_small_part_are_scanned(tmp_path: Path) -> None:
    keys = some_keys(100_000, 2)
    written(tmp_path, keys, "HNSW4")
    offsets = np.array([0, 60_000, 60_000, 100_000])
    large, empty, small = key_files.read_groups(tmp_path, SPACE, "HNSW4", offsets)
    assert large.index is not None
    assert (len(large.index), len(empty), empty.index, len(small), small.index) == (60_000, 0, None, 40_000, None)
    assert key_files.read_groups(tmp_path, SPACE, "HNSW4", offsets, with_indexes=False)[0].index is None


def test_a_later_segment_that_is_too_small_to_be_trained_is_flat(tmp_path: Path) -> None:
    version = appended(tmp_path, built(tmp_path, factory="IVF4,Flat"), 262)
    assert verify_contents(version) == []
    kinds = {
        folder: {key_files._open_flat(path) is not None for path in (version.path / folder).glob("keys-*.faiss")}
        for folder in ("segment-0", "segment-1")
    }
    assert kinds == {"segment-0": {False}, "segment-1": {True}}
    merged = compact(Store(tmp_path), version.ref)
    assert all(key_files._open_flat(path) is None for path in merged.path.rglob("keys-*.faiss"))
    assert verify_contents(merged) == []


def test_a_factory_that_cannot_hold_keys_by_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'IDMap,Flat' cannot be made of .* keys: add does not make sense"):
        built(tmp_path, factory="IDMap,Flat")
    assert Store(tmp_path).names() == ()


# Files that are not what they should be


def test_what_is_no_file_of_keys_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, some_keys(9))
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-4], whole + b"more", b"x" * 500, whole[:4] + b"\xff" * 300):
        path.write_bytes(content)
        with pytest.raises(VerificationError, match=r"is not a FAISS index file|holds an index, but not its keys"):
            key_files.read_keys(tmp_path, SPACE)
    faiss.write_index(faiss.index_factory(8, "SQ8"), str(path))
    with pytest.raises(VerificationError, match="but not its keys"):
        key_files.read_keys(tmp_path, SPACE)


def test_keys_that_are_not_those_of_the_windows_are_refused(tmp_path: Path) -> None:
    written(tmp_path, some_keys(9))
    with pytest.raises(VerificationError, match="are 9, but its windows have 10"):
        key_files.read_groups(tmp_path, SPACE, "Flat", np.array([0, 4, 10]))


# Segments of format 1


def as_format_1(folder: Path, groups: dict[KeySpace, list[KeyGroup]], factory: str) -> None:
    """Write a segment's keys as format 1 had them: an array, and an index for each group that is large enough."""
    for space, parts in groups.items():
        keys = [np.array(part.keys) for part in parts]
        key_files.keys_path(folder, space).unlink()
        write_array(folder / f"keys-{space}.npy", np.concatenate(keys))
        for number, part in enumerate(keys):
            if factory != "Flat" and len(part) > search.EXACT_ROWS:
                index = faiss.index_factory(part.shape[1], factory)
                index.train(part)
                index.add(part)
                faiss.write_index(index, str(folder / f"{space}-{number}.faiss"))


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_a_segment_of_format_1_answers_and_grows(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_indexes(monkeypatch)
    store, new = Store(tmp_path), built(tmp_path, factory=factory)
    with store.staging("old") as staging:
        for path in new.manifest.files:
            target = staging.path / path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((new.path / path).read_bytes())
        as_format_1(staging.path / "segment-0", open_version(new).segments[0].groups, factory)
        old = staging.publish(replace(new.manifest, format=1, files={}))
    assert old.manifest.format == 1
    assert verify(old) == ()
    assert verify_contents(old) == []
    alone = [path for path in old.manifest.files if key_files.is_index_alone(path)]
    assert bool(alone) == (factory != "Flat")
    memory, asked = open_version(old), queries_at(wide_table(), range(60, NUM_STEPS, 9))
    if factory == "Flat":
        assert_same(memory.search(asked, 5), open_version(new).search(asked, 5))
    else:
        assert all(group.index is not None for group in memory.segments[0].groups[KeySpace("own", 12)])
        for path in alone:
            (old.path / path).unlink()
        assert open_version(old, with_indexes=False).search(asked, 5).valid.any()
        return
    grown = append(store, old.ref, wide_table(300))
    assert grown.manifest.format == 2
    assert {Path(path).suffix for path in grown.manifest.files if "/keys-" in path} == {".npy", ".faiss"}
    assert verify_contents(grown) == []
    merged = compact(store, grown.ref)
    assert {Path(path).suffix for path in merged.manifest.files if "/keys-" in path} == {".faiss"}
    assert verify_contents(merged) == []
