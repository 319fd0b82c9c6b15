"""`cli data`: what it prints where, and with which exit code. Errors are turned into codes by cli/main.py."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cli.commands.data import app
from memory_index.errors import NotFoundError, UsageError
from memory_index.tables import catalog

GOOD = "date,load,wind\n" + "".join(f"2024-01-01 {hour:02d}:00,{hour}.5,{hour * 2}\n" for hour in range(24))
BAD = GOOD.replace("2024-01-01 05:00,5.5", "2024-01-01 05:00,oops").replace("2024-01-01 07:00,7.5,14\n", "")


@pytest.fixture
def file(tmp_path):
    def write(text: str):
        path = tmp_path / "grid.csv"
        path.write_text(text)
        return str(path)

    return write


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_check_json_has_the_promised_keys(file):
    result = call("check", file(BAD), "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert next(iter(document)) == "schema"
    assert {"file", "layout", "step", "series", "problems"} <= set(document)
    assert (document["layout"], document["step"], document["series"]) == ("wide", "h", ["load", "wind"])
    number, gap, counted = document["problems"]
    assert (gap["severity"], counted["kind"]) == ("note", "changed")
    assert {key: number[key] for key in ("kind", "series_id", "at", "row")} == {
        "kind": "not-a-number",
        "series_id": "load",
        "at": "2024-01-01T05:00:00",
        "row": 7,
    }
    assert (gap["kind"], gap["at"], gap["row"]) == ("gap", "2024-01-01T07:00:00", 8)
    assert "--on-gap" in gap["fix"]


def test_check_names_fault_place_and_flag_in_text(file):
    result = call("check", file(BAD))
    assert result.exit_code == 3
    for part in (
        "grid.csv: wide table of 23 rows and 2 series, one step is h",
        "oops",
        "2024-01-01T07:00:00",
        "--on-gap",
        "--missing",
    ):
        assert part in result.stdout
    assert "1 fault" in result.stderr
    assert "2 faults" in call("check", file(BAD), "--on-gap", "error").stderr
    one = call("check", file(GOOD.replace("2024-01-01 07:00,7.5,14\n", "")))
    assert one.stderr.splitlines()[-1] == "no faults"


def test_findings_that_are_alike_are_counted_beside_a_few_of_them(file):
    rows = [f"s{n:02d},2024-01-{day:02d},{n}\n" for n in range(40) for day in range(1, 29)]
    result = call("check", file("unique_id,ds,y\n" + "".join(rows)))
    assert result.exit_code == 0
    assert result.stdout.count("the series is constant") == 5
    assert "and 35 more of the kind 'constant': 40 in all, in 40 of 40 series" in result.stderr
    gaps = [row for row in rows if "-15," not in row]
    result = call("check", file("unique_id,ds,y\n" + "".join(gaps)))
    assert result.stdout.count("1 step is missing") == 5
    assert "and 35 more of the kind 'gap': 40 in all, in 40 of 40 series" in result.stderr
    document = json.loads(call("check", file("unique_id,ds,y\n" + "".join(gaps)), "--json").stdout)
    assert (document["unlisted"]["gap"], document["num_series"]["gap"]) == (20, 40)


def test_check_of_a_good_file(file):
    result = call("check", file(GOOD))
    assert result.exit_code == 0
    assert "no faults" in result.stderr
    assert json.loads(call("check", file(GOOD), "--json").stdout)["problems"] == []


def test_a_last_line_without_an_end_is_no_fault(file):
    result = call("check", file(GOOD.removesuffix("6\n")), "--json")
    assert result.exit_code == 0
    [problem] = json.loads(result.stdout)["problems"]
    assert (problem["kind"], problem["row"], problem["severity"]) == ("no-line-end", 25, "note")


def test_check_of_what_is_no_table_still_has_its_document(file):
    result = call("check", file(""), "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert (document["layout"], document["step"], document["series"]) == (None, None, [])
    assert [problem["kind"] for problem in document["problems"]] == ["empty"]


def test_the_flags_resolve_what_they_are_named_for(file):
    assert call("check", file(BAD), "--missing", "oops", "--on-nan", "ffill", "--on-gap", "drop").exit_code == 0
    assert call("check", file(BAD), "--ignore", "load", "--on-gap", "interpolate").exit_code == 0
    assert call("check", file(BAD), "--columns", "wind", "--step", "2h").exit_code == 3
    assert json.loads(call("check", file(GOOD), "--columns", "wind, load", "--json").stdout)["series"] == [
        "load",
        "wind",
    ]


def test_errors_are_raised_for_main_to_report(file, tmp_path):
    assert isinstance(call("check", str(tmp_path / "none.csv")).exception, NotFoundError)
    assert isinstance(call("check", file(GOOD), "--on-gap", "guess").exception, UsageError)
    assert isinstance(call("fetch", "ETTh9").exception, NotFoundError)


def test_the_leak_of_interpolation_is_in_the_help():
    text = " ".join(call("check", "--help").stdout.split())
    assert "knows the NEXT observed value" in text
    assert "--json" in text


def test_list():
    document = json.loads(call("list", "--json").stdout)
    assert [each["name"] for each in document["sets"]][:2] == ["ETTh1", "ETTh2"]
    table = call("list").stdout
    assert "CC BY-ND 4.0" in table
    assert "unknown" in table


def test_fetch_says_what_was_not_verified(tmp_path, monkeypatch):
    seen = {}

    def fake_fetch(entry, into, *, report):
        seen["into"] = into
        return catalog.Fetched(
            name=entry.name, path=into / entry.file, sha256="ab" * 32, bytes=5, verified=False, downloaded=True
        )

    monkeypatch.setattr(catalog, "fetch", fake_fetch)
    result = call("fetch", "weather", "--datasets-dir", str(tmp_path), "--json")
    assert result.exit_code == 0
    assert seen["into"] == tmp_path
    assert json.loads(result.stdout)["verified"] is False
    assert "not verified" in result.stderr
    assert "ab" * 32 in result.stderr
