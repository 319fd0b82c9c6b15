"""The frame of the command line: exit codes, error documents, help texts, and what output looks like."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

import forecaster.errors
from cli import __version__, main, output
from memory_index import errors
from memory_index.leakage import LeakError

DOCUMENTED = {
    "UsageError": 2,
    "DataError": 3,
    "NotFoundError": 4,
    "VerificationError": 5,
    "IncompatibleError": 6,
    "ResourceError": 7,
    "ServiceError": 8,
}
# The kinds; what is below them keeps their code.
ERROR_CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and errors.MemoryIndexError in value.__bases__
]
FORECASTER_ERRORS = {
    "ConfigError": 2,
    "BackboneNotFoundError": 4,
    "RunNotFoundError": 4,
    "RunDamagedError": 5,
    "RunIncompatibleError": 6,
}


@pytest.fixture
def failing(monkeypatch):
    """A program with one command, `fail`, which raises what it is told to raise."""

    def install(error: BaseException) -> None:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

        @app.callback()
        def _options() -> None: ...

        @app.command()
        def fail(as_json: bool = typer.Option(False, "--json")) -> None:
            raise error

        monkeypatch.setattr(main, "app", app)

    return install


def _cli(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments], capture_output=True, text=True, timeout=600, check=False, **options
    )


def _commands():
    """Every command of the program, with the words that call it."""

    def walk(command, words):
        yield words, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*words, name])

    return list(walk(typer.main.get_command(main.app), ["cli"]))


def _ids(words_and_command):
    return " ".join(words_and_command[0])


# Errors


def test_every_error_class_has_a_documented_exit_code():
    assert {error.__name__ for error in ERROR_CLASSES} == set(DOCUMENTED)
    assert main.EXIT_CODES == DOCUMENTED


@pytest.mark.parametrize("error_class", ERROR_CLASSES, ids=lambda cls: cls.__name__)
def test_known_error_is_one_line_on_stderr(error_class, failing, capsys):
    failing(error_class("file.csv, row 7: no\nnumber", hint="remove it"))
    assert main.run(["fail"]) == DOCUMENTED[error_class.__name__]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: file.csv, row 7: no number (remove it)\n"


@pytest.mark.parametrize("error_class", ERROR_CLASSES, ids=lambda cls: cls.__name__)
def test_known_error_is_a_document_with_json(error_class, failing, capsys):
    failing(error_class("what and where", hint="what to do"))
    code = main.run(["fail", "--json"])
    shown = capsys.readouterr()
    assert shown.err == ""
    assert code == DOCUMENTED[error_class.__name__]
    assert json.loads(shown.out)["error"] == {"code": code, "message": "what and where", "hint": "what to do"}


def test_subclass_of_a_known_error_keeps_its_code(failing):
    class TornFile(errors.VerificationError):
        pass

    failing(TornFile("torn"))
    assert main.run(["fail"]) == 5


@pytest.mark.parametrize("name", FORECASTER_ERRORS)
def test_errors_of_the_forecaster_have_the_codes_of_their_kinds(name, failing, capsys):
    failing(getattr(forecaster.errors, name)("runs/a: no", hint="train again"))
    assert main.run(["fail"]) == FORECASTER_ERRORS[name]
    assert capsys.readouterr().err == "error: runs/a: no (train again)\n"


def test_interrupted_says_how_to_go_on(failing, capsys):
    failing(KeyboardInterrupt("go on with: cli train --resume"))
    assert main.run(["fail", "--json"]) == 130
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {"code": 130, "message": "interrupted", "hint": "go on with: cli train --resume"}


def test_error_without_hint_has_no_empty_brackets(failing, capsys):
    failing(errors.DataError("empty"))
    main.run(["fail"])
    assert capsys.readouterr().err == "error: empty\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 TiB"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 9 TiB"),
        OSError(errno.ENOSPC, "No space left on device", "indexes/a"),
        PermissionError(errno.EACCES, "Permission denied", "indexes/a"),
        OSError(errno.EROFS, "Read-only file system", "indexes/a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_machine_lacks_is_code_7(error, failing, capsys):
    failing(error)
    assert main.run(["fail"]) == 7
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+ \([^\n]+\)\n", line)
    assert "indexes/a" in line or "9 TiB" in line


@pytest.mark.parametrize(
    "error",
    [RuntimeError("bug"), FileNotFoundError(errno.ENOENT, "gone", "f"), LeakError("always a defect, never the input")],
    ids=lambda error: type(error).__name__,
)
def test_unknown_error_keeps_its_traceback(error, failing):
    failing(error)
    with pytest.raises(type(error)):
        main.run(["fail"])


def test_unknown_error_exits_with_1_and_its_traceback():
    program = "import cli.main as m\ndef broken(arguments): raise RuntimeError('bug')\nm._invoke = broken\nm.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: bug" in done.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["fail", "--nonsense"], ["fail", "extra"]])
def test_usage_error_is_code_2(arguments, failing, capsys):
    failing(RuntimeError("never reached"))
    assert main.run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"error: [^\n]+ \(see '[^\n]+ --help'\)\n", shown.err)
    assert main.run([*arguments, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["code"] == 2
    assert document["error"]["message"]
    assert "--help" in document["error"]["hint"]


@pytest.mark.parametrize(("typed", "meant"), [(["fial"], "fail"), (["fail", "--jso"], "--json")])
def test_usage_error_names_the_nearest(typed, meant, failing, capsys):
    failing(RuntimeError("never reached"))
    assert main.run(typed) == 2
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train", "x.csv"], ["index", "build", "x.csv"]], ids=" ".join)
@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--use-tapr", "cli train ... --network"),
        ("--use_gram=1", "unless --no-gram"),
        ("--build-memory", "cli index build FILE --name NAME"),
    ],
)
def test_options_of_other_programs_are_answered_with_ours(command, typed, told, capsys):
    assert main.run([*command, typed]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: No such option: {typed.partition('=')[0]} (")
    assert told in line


def test_exit_code_that_a_command_chose(failing):
    failing(typer.Exit(3))
    assert main.run(["fail"]) == 3


def test_interrupted(failing, capsys):
    failing(KeyboardInterrupt())
    assert main.run(["fail"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_a_real_signal(ending):
    program = (
        "import time, cli.main as m\n"
        "def wait(arguments): print('ready', flush=True); time.sleep(600)\n"
        "m._invoke = wait\n"
        "m.main()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(ending)
        _, shown = process.communicate(timeout=600)
    assert process.returncode == 130
    assert shown == b"error: interrupted\n"


def test_reader_that_goes_away_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "cli", "--help"], stdout=gone, stderr=subprocess.PIPE, timeout=600, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


ONE_TEXT = "import typer, cli.main as m\nm._invoke = lambda _: typer.echo('x' * 999, nl=False)\nm.main()"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["-c", ONE_TEXT], 7),
        (["-m", "cli", "data", "list", "--json"], 7),
        (["-m", "cli", "data", "check", "no", "--json"], 4),
    ],
)
def test_output_that_cannot_be_written_whole_is_one_line_on_stderr(command, code, unbuffered, tmp_path):
    most = 100
    with (tmp_path / "full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, *command],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=600,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        )
    assert done.returncode == code
    assert re.fullmatch(rb"error: [^\n]+\n", done.stderr)
    assert (tmp_path / "full").stat().st_size == most


def test_nobody_is_left_to_tell(tmp_path):
    with (tmp_path / "full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli", "data", "list", "--json"],
            stdout=full,
            stderr=full,
            timeout=600,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )
    assert done.returncode == 7


def test_lines_are_not_held_back_where_nothing_shall_be_buffered():
    program = "import sys, cli.output as o\no.write_in_full()\nprint('now')\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"now\n"
        process.communicate(timeout=600)


# Help and version


def test_version():
    done = _cli("--version")
    assert (done.returncode, done.stdout) == (0, f"cli {__version__}\n")


def test_no_arguments_shows_the_help():
    bare, asked = _cli(), _cli("--help")
    assert (bare.returncode, asked.returncode) == (0, 0)
    assert bare.stdout == asked.stdout


@pytest.mark.parametrize("words_and_command", _commands(), ids=_ids)
def test_help_ends_with_an_example(words_and_command):
    words, command = words_and_command
    text = "\n\n".join(part for part in (command.help, command.epilog) if part).replace("\b\n", "")
    last = text.strip().split("\n\n")[-1]
    assert re.match(r"Examples?:", last), f"the help of {' '.join(words)} ends with: {last}"
    assert " ".join(words) in last


@pytest.mark.parametrize("words_and_command", _commands(), ids=_ids)
def test_every_option_is_explained(words_and_command):
    words, command = words_and_command
    silent = [param.name for param in command.params if not param.help and param.param_type_name == "option"]
    assert silent == [], f"options of {' '.join(words)} without help"


@pytest.mark.parametrize("words_and_command", _commands(), ids=_ids)
def test_help_can_be_shown(words_and_command, capsys):
    words, _ = words_and_command
    assert main.run([*words[1:], "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: cli")
    assert shown.err == ""


# Output


@dataclass
class Span:
    first: datetime
    path: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (np.float32("inf"), None),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]], dtype=np.float32), [[1.0, None]]),
        (np.array(["a"]), ["a"]),
        (np.datetime64("2018-02-01T00", "ns"), "2018-02-01T00:00:00"),
        (np.datetime64("2018-02-01T00:00:00.5", "ns"), "2018-02-01T00:00:00.500000000"),
        (np.datetime64("NaT"), None),
        (np.array(["2018-02-01", "NaT"], dtype="datetime64[ns]"), ["2018-02-01T00:00:00", None]),
        (pd.Timestamp("2018-02-01 00:00+01:00"), "2018-02-01T00:00:00+01:00"),
        (pd.NaT, None),
        (Span(first=datetime(2018, 2, 1), path=Path("a/b")), {"first": "2018-02-01T00:00:00", "path": "a/b"}),  # noqa: DTZ001
        ((1, "b"), [1, "b"]),
        ({1: None}, {"1": None}),
    ],
    ids=repr,
)
def test_json_values(value, expected, capsys):
    output.print_json("kind", {"value": value})
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"schema": "kind", "value": expected}
    assert shown.out.startswith('{"schema"')
    assert shown.out.count("\n") == 1


def test_json_refuses_what_it_cannot_say(capsys):
    with pytest.raises(TypeError, match="object"):
        output.print_json("kind", {"value": object()})
    assert capsys.readouterr().out == ""


ROWS = [["etth1@1", 8033, 0.375], ["a name with [brackets]", None, np.float32(0.1)], ["", np.int64(12345678), 1]]


def test_table_is_plain_when_piped(capsys):
    output.print_table(["ref", "rows", "mse"], ROWS, title="Versions")
    assert capsys.readouterr().out.splitlines() == [
        "Versions",
        "ref                         rows    mse",
        "etth1@1                     8033  0.375",
        "a name with [brackets]              0.1",
        "                        12345678      1",
    ]


@pytest.mark.parametrize("width", [40, 80])
def test_table_fits_a_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_table(["ref", "rows", "mse"], [*ROWS, ["long " * 30, 1, 2.0]])
    shown = capsys.readouterr().out
    assert "[brackets]" in shown
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()) <= width


def test_note_and_progress_leave_stdout_alone(capsys):
    output.note("careful")
    with output.progress("building") as report:
        report(1, 2)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "careful\n")


def test_progress_shows_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress("building [x]") as report:
        report(1, None)
        report(2, 2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "building [x]" in shown.err
