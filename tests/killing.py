"""Real processes for the tests of the store: one that works without end until it is killed, and short errands.

The processes are forked from a server that has everything imported, so that starting one takes milliseconds.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from store_fixtures import append, publish

from memory_index.versions.store import Store
from memory_index.versions.version import verify

killed_after_s = 0.0  # processor time that a worker has; set in its process
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["store_fixtures", "memory_fixtures", "memory_index.versions.archive"])


def run_together(errand: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[Any]:
    """Run an errand once per tuple of arguments, each in its own process, begun as nearly at once as can be.

    Returns what each returned; an exception is returned, not raised.
    """
    begin = PROCESSES.Barrier(len(arguments))
    running = []
    for each in arguments:
        here, there = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=do_errand, args=(there, begin, errand, each))
        process.start()
        there.close()
        running.append((process, here))
    answers = []
    for process, here in running:
        answers.append(here.recv())
        process.join()
    return answers


def do_errand(answer: Connection, begin: Any, errand: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """In the new process: what `run_together` asks for."""
    begin.wait(600)
    try:
        found = errand(*arguments)
    except Exception as error:  # noqa: BLE001 - it is the answer
        found = error
    answer.send(found)


def work_until_killed(indexes_dir: Path, log: Path, seed: int) -> None:
    """Build, append, alias, remove and collect at random, for ever.

    What is about to be removed or aliased is logged before, what has been published or aliased after; so the log
    always tells what must be there and what may be.
    """
    store, chance = Store(indexes_dir), random.Random(seed)
    with log.open("a") as lines:

        def say(*words: object) -> None:
            lines.write(" ".join(map(str, words)) + "\n")
            lines.flush()

        ready()
        while True:
            numbers = store.numbers("etth1")
            what = chance.choices(["build", "append", "alias", "remove", "gc"], [4, 4, 3, 1, 1])[0]
            if what == "build" or not numbers:
                version = publish(store, seed=chance.randrange(1 << 30))
                say("published", version.number, version.manifest.fingerprint)
            elif what == "append":
                version = append(store, store.resolve("etth1"), seed=chance.randrange(1 << 30))
                say("published", version.number, version.manifest.fingerprint)
            elif what == "alias":
                number = chance.choice(numbers)
                say("aliasing", number)
                store.set_alias("etth1", number, "prod")
                say("aliased", number)
            elif what == "remove" and (others := set(numbers) - set(store.aliases("etth1").values())):
                number = chance.choice(sorted(others))
                say("removing", number)
                store.remove(f"etth1@{number}")
            elif what == "gc":
                for ref in store.gc(keep=5, dry_run=True).versions:
                    say("removing", ref.partition("@")[2])
                store.gc(keep=5)


@dataclass
class Record:
    """What the log of a killed worker says: what must be there, and what may be."""

    published: dict[int, str] = field(default_factory=dict)
    removing: set[int] = field(default_factory=set)
    alias: int = 0  # 0: none yet
    alias_may_be: int = 0

    @classmethod
    def read(cls, log: Path) -> Record:
        record = cls()
        for line in log.read_text().splitlines():
            match line.split():
                case ["published", number, fingerprint]:
                    record.published[int(number)] = fingerprint
                case ["removing", number]:
                    record.removing.add(int(number))
                case ["aliasing", number]:
                    record.alias_may_be = int(number)
                case ["aliased", number]:
                    record.alias = int(number)
        return record


def kill_one(
    indexes_dir: Path,
    log: Path,
    chance: random.Random,
    *,
    work: Callable[[Path, Path, int], None] = work_until_killed,
    within_s: float = 0.15,
) -> None:
    """Start a worker that is killed at a random moment of its first so many seconds of work; wait until it is.

    Seconds of its own processor time, from its call of `ready`: how busy the machine is makes no difference.
    """
    seed, after_s = chance.randrange(1 << 30), chance.uniform(0, within_s)
    process = PROCESSES.Process(target=work_until_the_timer, args=(work, after_s, indexes_dir, log, seed))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGPROF, "the worker failed before it was killed"


def work_until_the_timer(
    work: Callable[[Path, Path, int], None], after_s: float, indexes_dir: Path, log: Path, seed: int
) -> None:
    """In the new process."""
    global killed_after_s
    killed_after_s = after_s
    work(indexes_dir, log, seed)


def ready() -> None:
    """A worker's call: from now on its time runs.

    The kernel ends it like SIGKILL would, in the middle of whatever it does: nobody handles SIGPROF.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, max(killed_after_s, 1e-6))


def check_after_kill(store: Store, log: Path, seen: dict[int, str]) -> bool:
    """All that was promised is there and whole, and `gc` clears the rest away. Returns whether there was a rest.

    seen: fingerprint of every number ever seen, carried from kill to kill: a number never changes its meaning.
    """
    record = Record.read(log)
    there = set(store.numbers("etth1"))
    assert set(record.published) - record.removing <= there, "a published version is gone"
    for number in there:
        version = store.resolve(f"etth1@{number}")
        assert verify(version) == (), f"{version.ref} is visible but not whole"
        fingerprint = version.manifest.fingerprint
        assert seen.setdefault(number, fingerprint) == fingerprint, f"{version.ref} has come to mean something else"
        assert record.published.get(number, fingerprint) == fingerprint
    if record.alias:
        assert store.resolve("etth1@prod").number in {record.alias, record.alias_may_be}
    report = store.gc()
    assert report.busy == (), "a lock outlived its process"
    hidden = [path.name for path in (store.indexes_dir / "etth1").rglob(".*") if not path.name.endswith(".lock")]
    assert hidden == [], "gc has left something"
    assert set(store.numbers("etth1")) == there, "gc without keep removed a version"
    return bool(report.leftovers)
