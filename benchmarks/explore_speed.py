"""How quick `cli explore` is on ETTh1: from a click into the history to the picture in the browser.

    python -m benchmarks.explore_speed --data-dir datasets

Skips, saying so, without ETTh1.csv in the folder (`cli data fetch ETTh1`) or without chromium (`make browser`).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from benchmarks.report import Figure, run_cli, show

SERIES, MOVES = ("OT", "HUFL", "MULL", "LUFL", "HULL"), 10  # moves of each series
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
# Notes each click, and promises the time at which the browser was ready to show the picture after it.
WATCH = """() => {
  const plot = document.querySelector("#windows-1 .js-plotly-plot");
  document.addEventListener("mouseup", () => {
    const clicked = performance.now(), origin = plot.layout.shapes[0].x0;
    window.waited = new Promise((resolve, reject) => {
      plot.on("plotly_afterplot", () => {
        if (plot.layout.shapes[0].x0 !== origin)
          requestAnimationFrame(() => resolve(performance.now() - clicked));
      });
      setTimeout(() => reject(new Error("no other picture within 20 s of a click")), 20000);
    });
  }, true);
}"""
ANSWER = """() => {
  const asked = performance.getEntriesByType("resource").filter((e) => e.name.includes("_dash-update-component"));
  return asked[asked.length - 1].duration;
}"""


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--indexes-dir", type=Path, help="a folder with etth1@1 and ...")
    parser.add_argument("--run", type=Path, help="... a run trained against it, instead of making both")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    file = next(iter(sorted(options.data_dir.rglob("ETTh1.csv"))), None)
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if file is None or browser is None:
        lacking = f"no ETTh1.csv below {options.data_dir} (cli data fetch ETTh1)" if file is None else "no chromium"
        print(f"skipped: {lacking}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        indexes, run = options.indexes_dir, options.run
        if indexes is None or run is None:
            indexes, run = made(file, Path(folder))
        figures = [
            measure(browser, file, indexes, ["--index", "etth1@1"], "memory alone", ""),
            measure(browser, file, indexes, ["--run", str(run)], "with a run", ""),
            measure(
                browser, file, indexes, ["--run", str(run)], "with a run, own beside pooled", "&scope=own&scope2=pooled"
            ),
        ]
    show("cli explore on ETTh1", "python -m benchmarks.explore_speed --data-dir datasets", figures, options.out)


def made(file: Path, folder: Path) -> tuple[Path, Path]:
    """A version and a run of default size, trained for a few steps: how good it is does not matter here."""
    indexes, run = folder / "indexes", folder / "runs" / "etth1"
    build = ["index", "build", str(file), "--name", "etth1", "--split", "ett-hourly", "--lookback", "512"]
    run_cli(*build, "--horizon", "96", "--indexes-dir", str(indexes), "--json")
    train = ["train", str(file), "--index", "etth1@1", "--indexes-dir", str(indexes), "--out", str(run)]
    run_cli(*train, "--set", "max_steps=20", "--json")
    return indexes, run


def measure(browser: str, file: Path, indexes: Path, what: list[str], name: str, address: str) -> Figure:
    """Clicks spread over the later part of several series, each waited for."""
    waits, answers = [], []
    with serving(file, indexes, what) as origin, sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        page = opened.new_page(viewport={"width": 1280, "height": 900})
        for series in SERIES:
            page.goto(f"{origin}?series={series}{address}")
            page.wait_for_selector("#table-1 td")
            page.wait_for_timeout(1000)
            page.evaluate(WATCH)
            moved = [move(page, place) for place in np.linspace(0.5, 0.9, MOVES)]
            waits += [wait for wait, _ in moved]
            answers += [answer for _, answer in moved]
        opened.close()
    return Figure(
        f"click to picture, {name}",
        f"median {np.median(waits):.0f} ms, p95 {np.percentile(waits, 95):.0f} ms",
        "300 ms",
        f"of it the server's answer: median {np.median(answers):.0f} ms, p95 {np.percentile(answers, 95):.0f} ms "
        f"({len(waits)} moves)",
    )


def move(page: Page, place: float) -> tuple[float, float]:
    """Click at a share of the width of the history; milliseconds until the picture was there, and of the answer."""
    page.evaluate("() => performance.clearResourceTimings()")
    box = page.locator("#history .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + place * box["width"], box["y"] + box["height"] / 2)
    waited = page.evaluate("() => window.waited")
    page.wait_for_timeout(100)
    return waited, page.evaluate(ANSWER)


@contextmanager
def serving(file: Path, indexes: Path, what: list[str]) -> Iterator[str]:
    """The page, served by a process of its own; its address."""
    command = [sys.executable, "-m", "cli", "explore", str(file), *what, "--indexes-dir", str(indexes), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    break
            else:
                raise SystemExit("the page was not served")
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
