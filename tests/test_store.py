"""The store when nothing goes wrong, and when the caller is wrong: publish, name, find, compare, carry, remove."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_fixtures import append, make_manifest, publish, write_files

from memory_index import files
from memory_index.errors import IncompatibleError, NotFoundError, ResourceError, UsageError, VerificationError
from memory_index.files import FileRecord
from memory_index.versions.archive import export, import_version
from memory_index.versions.manifest import BuildRecord, difference, manifest_from_json
from memory_index.versions.store import Store
from memory_index.versions.version import check_files, load, read_parquet, verify
from memory_index.windows import WindowSpec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "indexes")


def test_a_published_version_is_found_and_whole(store: Store) -> None:
    version = publish(store)
    assert version.ref == "etth1@1"
    assert store.resolve("etth1") == store.resolve("etth1@1") == store.resolve("etth1@latest") == version
    assert verify(version) == ()
    check_files(version)
    assert set(version.manifest.files) == {"encoder.safetensors"} | {
        f"segment-0/{name}" for name in ("series.parquet", "windows.parquet", "own-96.npy", "own-96.faiss")
    }


def test_the_manifest_hash_is_what_sha256sum_reads(store: Store) -> None:
    version = publish(store)
    subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=version.path, check=True, capture_output=True)


def test_published_files_cannot_be_written_by_accident(store: Store) -> None:
    version = publish(store)
    assert all(not path.stat().st_mode & 0o222 for path in version.path.rglob("*") if path.is_file())


def test_latest_is_the_highest_number(store: Store) -> None:
    for seed in range(11):
        publish(store, seed=seed)
    assert store.numbers("etth1") == tuple(range(1, 12))
    assert store.resolve("etth1").number == 11
    assert store.resolve("etth1@0003").number == 3


def test_fingerprint_depends_on_content_only(store: Store) -> None:
    first = publish(store, seed=5)
    again = publish(
        store, "other", seed=5, built=BuildRecord(source="x.csv", created_at="2030-01-01", seconds=9.0, peak_rss_mb=1.0)
    )
    assert first.manifest.fingerprint == again.manifest.fingerprint
    assert publish(store, seed=6).manifest.fingerprint != first.manifest.fingerprint
    assert publish(store, seed=5, fitted_until="2017-01-01").manifest.fingerprint != first.manifest.fingerprint


def test_a_failed_build_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.staging("etth1") as staging:
            write_files(staging.path, 0, ("encoder.safetensors",))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.names() == ()
    assert [path for path in (store.indexes_dir / "etth1").iterdir() if path.is_dir()] == []
    with store.staging("etth1"):
        pass  # not published: gone as well
    assert publish(store).number == 1


def test_a_manifest_that_no_reader_would_accept_is_not_published(store: Store) -> None:
    with store.staging("etth1") as staging:
        write_files(staging.path, 0, ("segment-0/a file with spaces",))
        with pytest.raises(VerificationError, match="not the path of a file"):
            staging.publish(make_manifest())
    assert store.names() == ()


class TestReferences:
    @pytest.mark.parametrize(
        "ref",
        ["", "@1", "etth1@", "../etth1", "etth1@../1", "a/b", "etth1@1@2", ".hidden", "-x", "e\n", "x" * 101, "\u00e9"],
    )
    def test_what_is_no_reference(self, store: Store, ref: str) -> None:
        publish(store)
        with pytest.raises(UsageError):
            store.resolve(ref)

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a@b", "/etc", ".staging-1"])
    def test_what_cannot_be_a_name(self, store: Store, name: str) -> None:
        with pytest.raises(UsageError), store.staging(name):
            pass
        assert not store.indexes_dir.exists()

    @pytest.mark.parametrize("alias", ["latest", "3", "007", "a/b", "..", "", ".new-1"])
    def test_what_cannot_be_an_alias(self, store: Store, alias: str) -> None:
        publish(store)
        with pytest.raises(UsageError):
            store.set_alias("etth1", 1, alias)

    @pytest.mark.parametrize(
        ("ref", "message", "hint"),
        [
            ("etth2", "did you mean 'etth1'", "etth1"),
            ("etth1@9", "etth1@9 does not exist", "1"),
            ("etth1@prd", "did you mean 'prod'", "latest, prod"),
        ],
    )
    def test_what_is_not_there_names_what_is(self, store: Store, ref: str, message: str, hint: str) -> None:
        publish(store)
        store.set_alias("etth1", 1, "prod")
        with pytest.raises(NotFoundError, match=message) as caught:
            store.resolve(ref)
        assert hint in caught.value.hint

    def test_an_empty_store(self, store: Store) -> None:
        assert store.names() == ()
        assert store.list_indexes() == ()
        assert store.gc().leftovers == ()
        with pytest.raises(NotFoundError, match="no index 'etth1'") as caught:
            store.resolve("etth1")
        assert "index build" in caught.value.hint
        with pytest.raises(NotFoundError):
            store.set_alias("etth1", 1, "prod")
        assert not store.indexes_dir.exists()  # looking makes nothing


class TestAliases:
    def test_set_switch_and_remove(self, store: Store) -> None:
        first, second = publish(store, seed=1), publish(store, seed=2)
        assert store.set_alias("etth1", 1, "prod") == first
        assert store.resolve("etth1@prod") == first
        store.set_alias("etth1", "latest", "prod")
        assert store.resolve("etth1@prod") == second
        store.set_alias("etth1", "prod", "best")
        assert store.aliases("etth1") == {"best": 2, "prod": 2}
        store.remove_alias("etth1", "prod")
        with pytest.raises(NotFoundError, match="no alias 'prod'"):
            store.resolve("etth1@prod")
        with pytest.raises(NotFoundError, match="no alias 'prod'"):
            store.remove_alias("etth1", "prod")
        assert store.resolve("etth1@best") == second

    def test_an_alias_cannot_come_to_mean_another_version_in_silence(self, store: Store) -> None:
        version, other = publish(store, seed=1), publish(store, seed=2)
        store.set_alias("etth1", 1, "prod")
        version.path.rename(version.path.with_name("moved"))
        other.path.rename(version.path)
        with pytest.raises(VerificationError, match="was set to a version with fingerprint"):
            store.resolve("etth1@prod")

    @pytest.mark.parametrize("content", ["", "2", "{}", '{"version": "1", "fingerprint": "x"}', "\0\0\0"])
    def test_a_damaged_alias_is_found_and_can_be_mended(self, store: Store, content: str) -> None:
        publish(store)
        store.set_alias("etth1", 1, "prod")
        (store.indexes_dir / "etth1" / "aliases" / "prod").write_text(content)
        for attempt in (
            lambda: store.resolve("etth1@prod"),
            lambda: store.remove("etth1@1"),
            lambda: store.gc(keep=1),
        ):
            with pytest.raises(VerificationError, match="damaged"):
                attempt()
        store.set_alias("etth1", 1, "prod")
        assert store.resolve("etth1@prod").number == 1


class TestAppend:
    def test_shares_the_bytes_of_its_parent(self, store: Store) -> None:
        parent = publish(store)
        child = append(store, parent)
        assert verify(child) == verify(parent) == ()
        for path in parent.manifest.files:
            assert (child.path / path).samefile(parent.path / path)
            assert child.manifest.files[path] == parent.manifest.files[path]

    def test_each_version_is_whole_without_the_other(self, store: Store) -> None:
        parent = publish(store)
        child = append(store, parent)
        grandchild = append(store, child, seed=2)
        store.remove("etth1@2")
        assert verify(parent) == verify(grandchild) == ()
        store.remove("etth1@1")
        assert verify(grandchild) == ()

    @pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.ENOTSUP])
    def test_copies_where_links_are_not_to_be_had(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        parent = publish(store)
        linked = append(store, parent)

        def refuse(self: Path, target: Path) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        copied = append(store, parent)
        assert not (copied.path / "encoder.safetensors").samefile(parent.path / "encoder.safetensors")
        assert verify(copied) == ()
        assert copied.manifest.fingerprint == linked.manifest.fingerprint

    def test_linked_files_are_not_hashed_again(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        parent = publish(store)
        hashed = []
        hash_file = files.hash_file

        def note(path: Path) -> FileRecord:
            hashed.append(path.name)
            return hash_file(path)

        monkeypatch.setattr(files, "hash_file", note)
        append(store, parent)
        assert sorted(hashed) == ["own-96.faiss", "own-96.npy", "series.parquet", "windows.parquet"]

    def test_a_parent_that_is_gone_or_damaged(self, store: Store) -> None:
        parent = publish(store)
        file = parent.path / "segment-0" / "own-96.npy"
        file.chmod(0o644)
        file.write_bytes(b"short")
        with pytest.raises(VerificationError, match=r"own-96\.npy is not as it was published"):
            append(store, parent)
        store.remove("etth1@1")
        with pytest.raises(NotFoundError, match="etth1@1 is not there"):
            append(store, parent)
        assert store.names() == ()


class TestRemove:
    def test_a_number_is_never_given_again(self, store: Store) -> None:
        publish(store)
        publish(store)
        store.remove("etth1@2")
        with pytest.raises(NotFoundError, match="etth1@2 was removed"):
            store.resolve("etth1@2")
        assert publish(store).number == 3
        store.remove("etth1@1")
        store.remove("etth1@3")
        assert store.names() == ()
        assert publish(store).number == 4

    def test_says_which_version(self, store: Store) -> None:
        publish(store)
        with pytest.raises(UsageError, match="does not say which version"):
            store.remove("etth1")
        with pytest.raises(UsageError, match="does not say which version"):
            store.remove("etth1@latest")  # run twice, it would take two versions

    def test_refuses_what_an_alias_names(self, store: Store) -> None:
        version = publish(store)
        store.set_alias("etth1", 1, "prod")
        with pytest.raises(IncompatibleError, match="named by the alias prod"):
            store.remove("etth1@1")
        with pytest.raises(IncompatibleError):
            store.remove("etth1@prod")
        assert verify(version) == ()

    def test_readers_keep_what_they_have_open(self, store: Store) -> None:
        version = publish(store)
        expected = (version.path / "segment-0/own-96.npy").read_bytes()
        with (version.path / "segment-0/own-96.npy").open("rb") as file:
            store.remove("etth1@1")
            assert file.read() == expected
        with pytest.raises(NotFoundError):
            check_files(version)

    def test_a_damaged_version_can_be_removed(self, store: Store) -> None:
        version = publish(store)
        (version.path / "manifest.json").unlink()
        store.remove("etth1@1")
        assert store.names() == ()


class TestGc:
    def test_keeps_the_newest_and_the_named(self, store: Store) -> None:
        for seed in range(5):
            publish(store, seed=seed)
        store.set_alias("etth1", 2, "prod")
        planned = store.gc(keep=1, dry_run=True)
        assert store.numbers("etth1") == (1, 2, 3, 4, 5)
        assert planned.versions == ("etth1@1", "etth1@3", "etth1@4")
        done = store.gc(keep=1)
        assert replace(done, dry_run=True) == planned
        assert done.bytes > 3 * 1000
        assert store.numbers("etth1") == (2, 5)
        assert store.gc(keep=1).versions == ()

    def test_frees_only_what_nobody_shares(self, store: Store) -> None:
        parent = publish(store)
        child = append(store, parent)
        manifests = sum((parent.path / name).stat().st_size for name in ("manifest.json", "manifest.sha256"))
        assert store.gc(keep=1).bytes == manifests  # all else is the child's too
        assert verify(child) == ()

    def test_never_without_a_latest(self, store: Store) -> None:
        publish(store)
        with pytest.raises(UsageError, match="keep is 0"):
            store.gc(keep=0)

    def test_leaves_a_running_build_alone(self, store: Store) -> None:
        publish(store)
        abandoned = store.indexes_dir / "etth1" / ".staging-dead"
        abandoned.mkdir()
        with store.staging("etth1") as staging:
            write_files(staging.path, 0, ("segment-0/series.parquet",))
            report = store.gc()
            assert report.busy == ("etth1",)
            assert report.leftovers == ()
            assert staging.publish(make_manifest()).number == 2
        report = store.gc()
        assert report.busy == ()
        assert report.leftovers == ("etth1/.staging-dead",)
        assert not abandoned.exists()

    def test_touches_nothing_that_is_not_an_index(self, tmp_path: Path) -> None:
        (tmp_path / "tests" / ".staging-not-ours").mkdir(parents=True)
        Store(tmp_path).gc(keep=1)
        assert sorted(path.name for path in (tmp_path / "tests").iterdir()) == [".staging-not-ours"]

    def test_an_unknown_name(self, store: Store) -> None:
        publish(store)
        with pytest.raises(NotFoundError, match="did you mean 'etth1'"):
            store.gc("etth")
        with pytest.raises(UsageError):
            store.gc("..")


def test_list(store: Store) -> None:
    first = publish(store, seed=1)
    publish(store, seed=2)
    publish(store, "weather")
    store.set_alias("etth1", 1, "prod")
    (second,) = [entry for entry in store.list_indexes("etth1")[0].versions if entry.version == 2]
    etth1, weather = store.list_indexes()
    assert (etth1.name, weather.name) == ("etth1", "weather")
    entry = etth1.versions[0]
    assert (entry.version, entry.aliases, entry.num_rows) == (1, ("prod",), 1000)
    assert entry.fingerprint == first.manifest.fingerprint
    assert entry.created_at == "2018-01-02T00:00:00+00:00"
    (first.path / "manifest.json").unlink()
    damaged, whole = store.list_indexes("etth1")[0].versions
    assert whole == second
    assert damaged.aliases == ("prod",)
    assert "manifest.json is missing" in damaged.problem


def test_diff(store: Store) -> None:
    first = publish(store)
    other = publish(store, seed=3, window=WindowSpec(lookback=336, horizon=96))
    child = append(store, first)
    found = difference(first.manifest, other.manifest)
    assert found.settings == {"window.lookback": (512, 336)}
    assert set(found.changed) == set(first.manifest.files)
    assert (found.equal, found.shared_segments, found.appended) == ((), (), False)
    found = difference(first.manifest, child.manifest)
    assert found.settings.keys() == {"num_rows", "parent"}
    assert (found.shared_segments, found.appended) == (("segment-0",), True)
    assert len(found.only_second) == 4
    assert found.changed == found.only_first == ()
    assert difference(child.manifest, child.manifest).settings == {}


class TestManifest:
    def test_round_trip(self) -> None:
        manifest = make_manifest()
        assert manifest_from_json(manifest.to_json(), where="here") == manifest

    def test_a_newer_format(self, store: Store) -> None:
        text = json.dumps({**json.loads(make_manifest().to_json()), "format": 99, "shards": []})
        with pytest.raises(IncompatibleError, match="format 99"):
            manifest_from_json(text, where="here")

    @pytest.mark.parametrize(
        "path", ["../x", "/etc/passwd", "a/../b", "a//b", "", ".", "a\\b", ".hidden", "a/./b", "C:/x", "a\0b"]
    )
    def test_a_path_out_of_the_version_is_refused(self, path: str) -> None:
        document = json.loads(make_manifest().to_json())
        document["files"] = {path: {"sha256": "0" * 64, "bytes": 1}}
        with pytest.raises(VerificationError, match="not the path of a file"):
            manifest_from_json(json.dumps(document), where="here")

    @pytest.mark.parametrize("record", [{"sha256": "x", "bytes": 1}, {"sha256": "0" * 64, "bytes": -1}, {}, [], 3])
    def test_a_record_that_is_none(self, record: object) -> None:
        document = json.loads(make_manifest().to_json())
        document["files"] = {"a": record}
        with pytest.raises(VerificationError):
            manifest_from_json(json.dumps(document), where="here")

    @pytest.mark.parametrize("field", sorted(json.loads(make_manifest().to_json())))
    def test_a_missing_or_wrong_field_is_named_not_crashed_on(self, field: str) -> None:
        document = json.loads(make_manifest().to_json())
        del document[field]
        with pytest.raises(VerificationError):
            manifest_from_json(json.dumps(document), where="here")


class TestArchive:
    def test_round_trip(self, store: Store, tmp_path: Path) -> None:
        version = append(store, publish(store))
        store.remove("etth1@1")
        archive = export(version, tmp_path)
        assert archive == tmp_path / "etth1@2.zip"
        elsewhere = Store(tmp_path / "elsewhere")
        imported = import_version(elsewhere, archive)
        assert imported.version.ref == "etth1@1"
        assert not imported.was_present
        assert imported.version.manifest.fingerprint == version.manifest.fingerprint
        assert verify(imported.version) == ()
        assert import_version(elsewhere, archive, "copy").version.ref == "copy@1"
        again = import_version(elsewhere, archive)
        assert (again.version.ref, again.was_present) == ("etth1@1", True)
        assert elsewhere.numbers("etth1") == (1,)

    def test_replaces_a_damaged_version(self, store: Store, tmp_path: Path) -> None:
        version = publish(store)
        archive = export(version, tmp_path)
        (version.path / "encoder.safetensors").unlink()
        assert import_version(store, archive).version.ref == "etth1@2"

    def test_equal_versions_give_equal_bytes(self, store: Store, tmp_path: Path) -> None:
        version = publish(store)
        first, second = export(version, tmp_path / "a.zip"), export(version, tmp_path / "b.zip")
        assert first.read_bytes() == second.read_bytes()

    def test_a_damaged_version_is_not_exported(self, store: Store, tmp_path: Path) -> None:
        version = publish(store)
        (version.path / "encoder.safetensors").unlink()
        with pytest.raises(VerificationError, match=r"encoder\.safetensors is missing"):
            export(version, tmp_path / "a.zip")
        assert not list(tmp_path.glob("*.zip")) + list(tmp_path.glob(".*"))

    def test_wrong_paths(self, store: Store, tmp_path: Path) -> None:
        version = publish(store)
        with pytest.raises(UsageError, match="not the name of an archive"):
            export(version, tmp_path / "a.tar")
        (tmp_path / "there.zip").write_text("mine")
        with pytest.raises(UsageError, match="exists already"):
            export(version, tmp_path / "there.zip")
        with pytest.raises(NotFoundError, match="no folder"):
            export(version, tmp_path / "nowhere" / "a.zip")
        with pytest.raises(NotFoundError, match="no archive"):
            import_version(store, tmp_path / "nothing.zip")
        with pytest.raises(VerificationError, match="not a whole archive"):
            import_version(store, tmp_path / "there.zip")
        with pytest.raises(UsageError):
            import_version(store, export(version, tmp_path / "a.zip"), "../x")


class TestParquet:
    def test_rows_are_counted_before_they_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({"x": range(100)}), path)
        assert read_parquet(path, num_rows=100).num_rows == 100
        monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("decoded"))
        for num_rows in (99, 101):
            with pytest.raises(VerificationError, match="says it has 100 rows"):
                read_parquet(path, num_rows=num_rows)

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 1000, b"PAR1" + b"\xff" * 100 + b"PAR1"])
    def test_what_is_not_parquet(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "t.parquet").write_bytes(content)
        with pytest.raises(VerificationError, match="cannot be read as Parquet"):
            read_parquet(tmp_path / "t.parquet", num_rows=1)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(VerificationError):
            read_parquet(tmp_path / "t.parquet", num_rows=1)


def test_hashing_survives_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    found = files.hash_files([tmp_path / "missing", tmp_path / "a"])
    assert isinstance(found[0], FileNotFoundError)
    assert found[1] == files.hash_file(tmp_path / "a")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.zeros((0, 5)),
        np.arange(6).reshape(2, 3).T,
        np.array(["2018"], "M8[ns]"),
    ],
)
def test_arrays_are_written_as_numpy_reads_them(tmp_path: Path, array: np.ndarray) -> None:
    files.write_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    assert np.load(tmp_path / "a.npy", mmap_mode="r" if array.size else None).dtype == array.dtype


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "indexes").write_text("")
    store = Store(tmp_path / "indexes")
    assert store.names() == ()
    with pytest.raises(ResourceError, match="indexes"):
        publish(store)


def test_load_and_location_agree(store: Store) -> None:
    version = publish(store)
    assert load(store.locate("etth1@1")) == version
