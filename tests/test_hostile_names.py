"""Names of series and files are text, whatever is in them: in pictures (formulas), in pages (tags) and in commands."""

from __future__ import annotations

import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cli_fixtures import HORIZON, LOOKBACK, frame, write_settings

from cli.main import run

NAMES = (r"price $\frac a$", "US$ and CA$", "<script>alert(1)</script>", "a\"b'c & <b>d</b> -->", "${x} {{ y }} %s")
AT = "2024-01-18 12:00"


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(page: Path) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a table of such names, an index of it and a run."""
    folder = tmp_path_factory.mktemp("hostile")
    table = frame().rename(columns={"north": NAMES[0], "south": NAMES[1]})
    for name in NAMES[2:]:
        table[name] = table[NAMES[0]] + 1
    table.to_csv(folder / "a & b.csv", index=False)
    toml = write_settings(folder / "small.toml", epochs=1, use_llm=False)
    where = ["--indexes-dir", str(folder / "indexes")]
    size = ["--lookback", str(LOOKBACK), "--horizon", str(HORIZON)]
    assert run(["index", "build", str(folder / "a & b.csv"), "--name", "m", *size, *where]) == 0
    train = ["train", str(folder / "a & b.csv"), "--index", "m@1", "--config", str(toml), "--device", "cpu", *where]
    assert run([*train, "--out", str(folder / "run")]) == 0
    return folder


def commands(folder: Path, name: str) -> dict[str, list[str]]:
    file, window = str(folder / "a & b.csv"), ["--series", name, "--at", AT]
    return {
        "neighbours": ["index", "neighbours", "m@1", file, *window],
        "explain": ["explain", file, "--run", str(folder / "run"), *window],
        "show": ["index", "show", "m@1"],
    }


@pytest.mark.parametrize(
    ("command", "name"),
    [*((command, name) for command in ("neighbours", "explain") for name in NAMES), ("show", "all of them")],
)
def test_a_name_is_never_a_formula_or_a_tag(made, tmp_path, command, name):
    page, picture = tmp_path / "page.html", tmp_path / "picture.svg"
    drawn = ["--html", str(page), "--plot", str(picture), "--indexes-dir", str(made / "indexes")]
    assert run([*commands(made, name)[command], *drawn]) == 0
    assert picture.stat().st_size > 1000
    found = tags(page)
    assert {tag for tag, _ in found} & {"script", "b", "iframe", "a", "img"} == set()
    assert not [attributes for _, attributes in found if any(key.startswith("on") for key in attributes)]
    labels = [attributes["aria-label"] for tag, attributes in found if tag == "svg"]
    assert labels
    if command != "show":
        assert all(name in label for label in labels)


def test_forecasts_of_such_series_are_drawn(made, tmp_path):
    file, drawn = str(made / "a & b.csv"), ["--plot", str(tmp_path / "f.pdf"), "--out", str(tmp_path / "f.csv")]
    assert run(["forecast", file, "--index", "m@1", *drawn, "--indexes-dir", str(made / "indexes")]) == 0
    assert (tmp_path / "f.pdf").stat().st_size > 1000


def test_the_command_in_the_footer_can_be_typed(made, tmp_path, capsys):
    page = tmp_path / "page.html"
    where = ["--indexes-dir", str(made / "indexes")]
    assert run([*commands(made, NAMES[3])["neighbours"], "--html", str(page), *where]) == 0
    text = page.read_text(encoding="utf-8")
    footer = text[text.index("<footer>") :]
    for escaped, plain in {"&#39;": "'", "&#34;": '"', "&lt;": "<", "&gt;": ">", "&amp;": "&"}.items():
        footer = footer.replace(escaped, plain)
    typed = shlex.split(footer[footer.index("Made by: ") + len("Made by: ") : footer.index("</footer>")])
    assert typed[0] == "cli"
    assert run([*typed[1:], *where]) == 0
    assert "neighbours of" in capsys.readouterr().err
