"""The store when things go wrong: damaged files and archives, full disks, permissions, rivals, kill -9."""

from __future__ import annotations

import codecs
import json
import os
import random
import resource
import shutil
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killing import check_after_kill, kill_one, run_together
from safetensors.numpy import save_file
from store_fixtures import LFS_POINTER, append, make_manifest, publish, segment_files, write_files

from memory_index import files
from memory_index.errors import IncompatibleError, MemoryIndexError, NotFoundError, ResourceError, VerificationError
from memory_index.versions.archive import export, import_version
from memory_index.versions.store import Store
from memory_index.versions.version import Location, Version, check_files, load, manifest_files, verify

FILES = ("manifest.json", "manifest.sha256", "encoder.safetensors", *segment_files(0), *segment_files(1))
NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "indexes")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach (tmp_path is the test user's own)."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def flip(path: Path, position: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x10
    path.write_bytes(content)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "flipped at the end": lambda path: flip(path, -1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": Path.unlink,
    "pointer": lambda path: path.write_bytes(LFS_POINTER),
    "a folder": replace_by_folder,
}


class TestDamage:
    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.parametrize("file", FILES)
    def test_every_fault_of_every_file_is_found(self, store: Store, file: str, fault: str) -> None:
        version = append(store, publish(store))
        assert verify(version) == ()
        (version.path / file).chmod(0o644)
        FAULTS[fault](version.path / file)
        (problem,) = verify(store.locate("etth1"))
        # One of the two manifest files convicts the other; which of them is wrong cannot be known.
        assert problem.file == file or (file, problem.file) == ("manifest.sha256", "manifest.json")
        with pytest.raises((VerificationError, ResourceError), match=problem.file) as caught:
            check_files(version)
        assert isinstance(caught.value, ResourceError) == (fault == "a folder")
        assert "\n" not in str(caught.value)
        assert caught.value.hint
        if fault == "pointer":
            assert "Git LFS pointer" in problem.message
            assert "git lfs pull" in caught.value.hint
        if fault == "missing":
            assert problem.kind == "missing"
        if fault in ("truncated", "emptied", "longer") and "manifest" not in file:
            assert problem.kind == "size"
            assert "were published" in problem.message

    def test_a_pointer_of_the_same_size_is_told_as_one(self, store: Store) -> None:
        with store.staging("etth1") as staging:
            write_files(staging.path, 0, ("segment-0/own-96.npy",))
            (staging.path / "segment-0/own-96.faiss").write_bytes(b"x" * len(LFS_POINTER))
            version = staging.publish(make_manifest())
        (version.path / "segment-0/own-96.faiss").chmod(0o644)
        (version.path / "segment-0/own-96.faiss").write_bytes(LFS_POINTER)
        assert [problem.kind for problem in verify(version)] == ["pointer"]

    def test_flipped_bytes_all_over_the_manifest_are_found(self, store: Store) -> None:
        version = publish(store)
        for file in ("manifest.json", "manifest.sha256"):
            path = version.path / file
            path.chmod(0o644)
            content = path.read_bytes()
            for position in range(0, len(content), 7):
                flip(path, position)
                with pytest.raises(VerificationError):
                    store.resolve("etth1")
                path.write_bytes(content)
        assert store.resolve("etth1") == version

    def test_all_problems_are_listed_and_counted(self, store: Store) -> None:
        version = append(store, publish(store))
        (version.path / "encoder.safetensors").unlink()
        (version.path / "segment-1/own-96.npy").unlink()
        (version.path / "segment-1/.DS_Store").write_text("extra")
        assert [(problem.file, problem.kind) for problem in verify(version)] == [
            ("encoder.safetensors", "missing"),
            ("segment-1/.DS_Store", "extra"),
            ("segment-1/own-96.npy", "missing"),
        ]
        with pytest.raises(VerificationError, match="1 more"):
            check_files(version)

    def test_only_what_will_be_opened_is_hashed(self, store: Store) -> None:
        version = publish(store)
        (version.path / "encoder.safetensors").unlink()
        check_files(version, only=lambda path: path.startswith("segment-0/"))
        with pytest.raises(VerificationError, match=r"encoder\.safetensors is missing"):
            check_files(version, only=lambda path: "/" not in path)

    def test_a_file_that_nobody_reads_does_not_stop_a_reader(self, store: Store) -> None:
        version = publish(store)
        (version.path / "notes.txt").write_text("extra")
        check_files(version)
        assert [problem.kind for problem in verify(version)] == ["extra"]

    def test_a_version_swapped_under_its_reader(self, store: Store) -> None:
        version, other = publish(store, seed=1), publish(store, seed=2)
        shutil.rmtree(version.path)
        other.path.rename(version.path)
        with pytest.raises(VerificationError, match="has changed since it was read"):
            check_files(version)

    def test_a_newer_format(self, store: Store) -> None:
        version = publish(store)
        content = json.dumps({**json.loads((version.path / "manifest.json").read_text()), "format": 99}).encode()
        for file, text in manifest_files(content).items():
            (version.path / file).chmod(0o644)
            (version.path / file).write_bytes(text)
        for attempt in (lambda: store.resolve("etth1"), lambda: verify(store.locate("etth1"))):
            with pytest.raises(IncompatibleError, match="format 99") as caught:
                attempt()
            assert "upgrade" in caught.value.hint
        assert "format 99" in store.list_indexes()[0].versions[0].problem


class TestArchiveDamage:
    def test_every_truncation_is_found(self, store: Store, tmp_path: Path) -> None:
        archive = export(publish(store), tmp_path)
        content = archive.read_bytes()
        for length in [*range(0, len(content), 97), len(content) - 1]:
            archive.write_bytes(content[:length])
            with pytest.raises(VerificationError):
                import_version(store, archive, "copy")
        assert store.names() == ("etth1",)

    def test_a_flipped_byte_is_found_or_is_of_no_consequence(self, store: Store, tmp_path: Path) -> None:
        self.flip_bytes(store, tmp_path, num_flips=300)

    @pytest.mark.soak
    def test_every_flipped_byte_is_found_or_is_of_no_consequence(self, store: Store, tmp_path: Path) -> None:
        self.flip_bytes(store, tmp_path, num_flips=20_000)

    def flip_bytes(self, store: Store, tmp_path: Path, *, num_flips: int) -> None:
        version = publish(store)
        archive = export(version, tmp_path)
        content, chance, num_found = archive.read_bytes(), random.Random(0), 0
        headers = [found for found in range(len(content)) if content[found : found + 2] == b"PK"]
        for attempt in range(num_flips):
            # Half of the flips are in the archive's own structure, where a reader could be led astray.
            near = chance.choice(headers) + chance.randrange(60) if attempt % 2 else chance.randrange(len(content))
            damaged = bytearray(content)
            damaged[min(near, len(content) - 1)] ^= 1 << chance.randrange(8)
            archive.write_bytes(damaged)
            try:
                imported = import_version(Store(tmp_path / "copies"), archive, f"copy{attempt}").version
            except VerificationError:
                num_found += 1
            else:
                assert imported.manifest == version.manifest
                assert verify(imported) == ()
        assert num_found > num_flips / 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copies", "etth1@1.zip", "indexes"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda members: members.update({"etth1@1/../../evil": b"x"}),
            lambda members: members.update({"/evil": b"x"}),
            lambda members: members.update({"etth1@1/extra": b"x"}),
            lambda members: members.update({"other/extra": b"x"}),
            lambda members: members.pop("etth1@1/encoder.safetensors"),
            lambda members: members.pop("etth1@1/manifest.json"),
            lambda members: members.update({"etth1@1/encoder.safetensors": b"x" * 10_000}),
            lambda members: members.update(
                {"etth1@1/encoder.safetensors": members["etth1@1/encoder.safetensors"][::-1]}
            ),
            lambda members: members.clear(),
        ],
    )
    def test_a_changed_archive_is_refused(self, store: Store, tmp_path: Path, change: Callable[..., object]) -> None:
        members = self.members(export(publish(store), tmp_path))
        change(members)
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        self.refused(store, tmp_path)

    def test_a_manifest_that_points_outside_is_refused(self, store: Store, tmp_path: Path) -> None:
        members = self.members(export(publish(store), tmp_path))
        document = json.loads(members["etth1@1/manifest.json"])
        document["files"]["../../evil"] = document["files"].pop("encoder.safetensors")
        members["etth1@1/../../evil"] = members.pop("etth1@1/encoder.safetensors")
        members |= {f"etth1@1/{name}": text for name, text in manifest_files(json.dumps(document).encode()).items()}
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        self.refused(store, tmp_path)

    def test_links_bombs_and_twins_are_refused(self, store: Store, tmp_path: Path) -> None:
        members = self.members(export(publish(store), tmp_path))
        link = zipfile.ZipInfo("etth1@1/encoder.safetensors")
        link.external_attr = 0o120777 << 16  # a symbolic link, for those who look at modes
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(
                    link if name == link.filename else name, b"/etc/passwd" if name == link.filename else content
                )
        self.refused(store, tmp_path)
        with zipfile.ZipFile(tmp_path / "evil.zip", "w", compression=zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        self.refused(store, tmp_path, match="compressed")
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("etth1@1/encoder.safetensors", b"x")
        self.refused(store, tmp_path, match="twice")

    def members(self, archive: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(archive) as content:
            return {name: content.read(name) for name in content.namelist()}

    def refused(self, store: Store, tmp_path: Path, match: str = "evil.zip") -> None:
        with pytest.raises(VerificationError, match=match):
            import_version(store, tmp_path / "evil.zip", "copy")
        assert store.names() == ("etth1",)
        assert not list(tmp_path.rglob("evil")) + list(tmp_path.parent.glob("evil"))
        assert not list(store.indexes_dir.glob("*/.staging-*"))


def write_as(writer: str, path: Path, values: np.ndarray) -> None:
    """Write float64 [n] with one of the libraries that write files of a version, each of which fails in its own way."""
    if writer == "array":
        files.write_array(path, values)
    elif writer == "numpy":
        np.save(path, values)
    elif writer == "pyarrow":
        pq.write_table(pa.table({"x": values}), path)
    elif writer == "safetensors":
        save_file({"x": values}, path)
    else:
        index = faiss.IndexFlatL2(10)
        index.add(values.reshape(-1, 10).astype(np.float32))
        if writer == "faiss":
            faiss.write_index(index, str(path))
        else:
            with path.open("xb") as file:
                faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def write_tail(folder: Path, writer: str) -> None:
    """Write a file whose last bytes only, which wait in a buffer until it is closed, are over the limit."""
    path = folder / "file"
    write_as(writer, path, np.zeros(5_000))
    num_bytes = path.stat().st_size
    path.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes - 50, num_bytes - 50))
    with files.refusals_named(path):
        write_as(writer, path, np.zeros(5_000))


def publish_large(indexes_dir: Path, writer: str, limit: int | None) -> None:
    """Publish a version with one file of 800 kB, written as `writer` does, in a process with a limit on file sizes."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    values = np.random.default_rng(0).random(100_000)
    with Store(indexes_dir).staging("etth1") as staging:
        path = staging.path / "segment-0" / "own-96.npy"
        path.parent.mkdir()
        write_as(writer, path, values)
        staging.publish(make_manifest())


class TestRefusals:
    WRITERS = ("array", "numpy", "pyarrow", "safetensors", "faiss", "faiss file")

    @pytest.mark.parametrize("writer", WRITERS)
    def test_a_limit_on_file_sizes(self, store: Store, writer: str) -> None:
        before = publish(store)
        (error,) = run_together(publish_large, (store.indexes_dir, writer, 100_000))
        self.is_refusal(error)
        assert verify(before) == ()
        assert store.gc(dry_run=True).leftovers == ()
        assert store.numbers("etth1") == (1,)
        assert run_together(publish_large, (store.indexes_dir, writer, None)) == [None]
        assert store.numbers("etth1") == (1, 2)

    @pytest.mark.parametrize("writer", ["array", "pyarrow", "safetensors", "faiss file"])
    def test_the_last_bytes_are_not_lost_in_silence(self, tmp_path: Path, writer: str) -> None:
        (error,) = run_together(write_tail, (tmp_path, writer))
        self.is_refusal(error)
        assert "file too large" in str(error)

    @pytest.mark.parametrize("writer", WRITERS)
    def test_a_full_disk(self, tmp_path: Path, writer: str) -> None:
        small = tmp_path / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small file system cannot be mounted here")
        try:
            store = Store(small / "indexes")
            before = publish(store)
            (error,) = run_together(publish_large, (store.indexes_dir, writer, None))
            self.is_refusal(error)
            assert "no space left" in str(error)
            assert "disk space" in error.hint
            assert verify(before) == ()
            assert store.gc(dry_run=True).leftovers == ()
            with pytest.raises(ResourceError, match="no space left"):
                export(before, self.fill(small))
            assert store.resolve("etth1") == before
            store.remove("etth1@1")  # a full disk must not stand in the way of making room
            assert store.names() == ()
        finally:
            subprocess.run(["umount", str(small)], check=True)

    def fill(self, folder: Path) -> Path:
        """Leave no room for an archive. Returns where one would be written."""
        free = shutil.disk_usage(folder).free
        (folder / "ballast").write_bytes(b"\0" * max(0, free - 4096))
        return folder / "archive.zip"

    def is_refusal(self, error: object) -> None:
        assert isinstance(error, ResourceError), repr(error)
        assert "\n" not in str(error)
        assert error.hint

    def test_no_permission_to_write(self, open_folder: Path) -> None:
        store = Store(open_folder / "indexes")
        version = publish(store)
        (error,) = run_together(as_nobody, (publish, store))
        self.is_refusal(error)
        assert "permission denied" in str(error)
        for call in (set_alias, remove, collect):
            (error,) = run_together(as_nobody, (call, store))
            self.is_refusal(error)
        assert run_together(as_nobody, (check_files, version)) == [None]  # reading is allowed, and needs no lock
        assert store.resolve("etth1") == version

    def test_no_permission_to_read(self, open_folder: Path) -> None:
        store = Store(open_folder / "indexes")
        version = publish(store)
        (version.path / "encoder.safetensors").chmod(0)
        (problems,) = run_together(as_nobody, (verify, version))
        assert [(problem.file, problem.kind) for problem in problems] == [("encoder.safetensors", "unreadable")]
        (error,) = run_together(as_nobody, (check_files, version))
        self.is_refusal(error)
        (version.path / "manifest.json").chmod(0)
        (error,) = run_together(as_nobody, (Store.resolve, store, "etth1"))
        self.is_refusal(error)
        (store.indexes_dir / "etth1").chmod(0)
        (error,) = run_together(as_nobody, (Store.resolve, store, "etth1"))
        self.is_refusal(error)


def as_nobody(call: Callable[..., object], *arguments: object) -> object:
    """Without the rights of root, whom no permission stops."""
    codecs.lookup("ascii")  # is loaded on first use, from a place that only root may be able to read
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return call(*arguments)


def set_alias(store: Store) -> None:
    store.set_alias("etth1", 1, "prod")


def remove(store: Store) -> None:
    store.remove("etth1@1")


def collect(store: Store) -> None:
    store.gc(keep=1)


def publish_once_the_other_is_refused(store: Store, seed: int) -> tuple[int, str]:
    refused = store.indexes_dir / "refused"
    try:
        with store.staging("etth1") as staging:
            write_files(staging.path, seed, segment_files(0))
            while not refused.exists():
                time.sleep(0.01)
            version = staging.publish(make_manifest())
    except ResourceError:
        refused.touch()
        raise
    return version.number, version.manifest.fingerprint


def publish_often(store: Store, seed: int) -> list[tuple[int, str] | str]:
    answers: list[tuple[int, str] | str] = []
    for attempt in range(15):
        try:
            version = publish(store, seed=1000 * seed + attempt)
            answers.append((version.number, version.manifest.fingerprint))
        except ResourceError as error:
            answers.append(str(error))
    return answers


class TestRivals:
    def test_of_two_builders_one_loses_at_once_and_cleanly(self, store: Store) -> None:
        publish(store)
        answers = run_together(publish_once_the_other_is_refused, (store, 1), (store, 2))
        winners = [answer for answer in answers if isinstance(answer, tuple)]
        losers = [answer for answer in answers if isinstance(answer, ResourceError)]
        assert (len(winners), len(losers)) == (1, 1)
        assert "pid" in str(losers[0])
        assert "wait" in losers[0].hint
        assert store.resolve("etth1").manifest.fingerprint == winners[0][1]
        assert store.numbers("etth1") == (1, 2)
        assert store.gc(dry_run=True).leftovers == ()

    def test_a_second_builder_in_the_same_process_is_told_our_own_pid_without_waiting(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("memory_index.files.time.sleep", lambda seconds: pytest.fail("it waits"))
        with (
            store.staging("etth1"),
            pytest.raises(ResourceError, match=rf"pid {os.getpid()}\b"),
            store.staging("etth1"),
        ):
            pytest.fail("two builders at once")
        with store.staging("etth1"), store.staging("weather"):
            pass  # another name is no rival

    def test_many_builders_never_mix(self, store: Store) -> None:
        answers = [
            each for found in run_together(publish_often, *((store, seed) for seed in range(4))) for each in found
        ]
        published: dict[int, str] = dict(answer for answer in answers if isinstance(answer, tuple))
        assert len(published) == sum(isinstance(answer, tuple) for answer in answers) >= 15
        assert tuple(sorted(published)) == store.numbers("etth1")
        for number, fingerprint in published.items():
            version = store.resolve(f"etth1@{number}")
            assert version.manifest.fingerprint == fingerprint
            assert verify(version) == ()

    def test_an_alias_switched_while_it_is_read(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(store, seed=1)
        second = publish(store, seed=2)
        store.set_alias("etth1", 1, "prod")

        def switch_first(location: Location) -> Version:
            monkeypatch.undo()
            store.set_alias("etth1", 2, "prod")
            store.remove("etth1@1")
            return load(location)

        monkeypatch.setattr("memory_index.versions.store.load", switch_first)
        assert store.resolve("etth1@prod") == second

    def test_readers_beside_switches_and_removals(self, store: Store) -> None:
        publish(store)
        store.set_alias("etth1", 1, "prod")
        done, faults, counts = threading.Event(), [], {"read": 0, "gone": 0}

        def read() -> None:
            while not done.is_set():
                try:
                    version = store.resolve("etth1@prod")
                    store.resolve("etth1")
                    store.list_indexes()
                except MemoryIndexError as error:
                    faults.append(error)
                    return
                try:
                    check_files(version)
                    counts["read"] += 1
                except NotFoundError:  # removed after it was resolved: says so, and not that bytes are wrong
                    counts["gone"] += 1
                except MemoryIndexError as error:
                    faults.append(error)
                    return

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for seed in range(40):
            version = publish(store, seed=seed)
            store.set_alias("etth1", version.number, "prod")
            store.remove(f"etth1@{version.number - 1}")
            store.gc(keep=1)
        done.set()
        for reader in readers:
            reader.join()
        assert faults == []
        assert counts["read"] > 10


class TestKills:
    def test_a_kill_at_any_moment_loses_nothing(self, store: Store, tmp_path: Path) -> None:
        self.kill(store, tmp_path / "log", num_kills=8, seed=1)

    @pytest.mark.soak
    def test_two_hundred_kills_lose_nothing(self, store: Store, tmp_path: Path) -> None:
        num_hits = self.kill(store, tmp_path / "log", num_kills=200, seed=2)
        assert num_hits > 20, "hardly any kill hit a build or removal: the test proves nothing"

    def kill(self, store: Store, log: Path, *, num_kills: int, seed: int) -> int:
        chance, num_hits = random.Random(seed), 0
        seen: dict[int, str] = {}
        for _ in range(num_kills):
            kill_one(store.indexes_dir, log, chance)
            num_hits += check_after_kill(store, log, seen)
        publish(store)
        return num_hits

    def test_a_lock_dies_with_its_holder(self, store: Store, tmp_path: Path) -> None:
        publish(store)
        kill_one(store.indexes_dir, tmp_path / "log", random.Random(0))
        assert (store.indexes_dir / "etth1" / ".builder.lock").exists()
        publish(store)
