"""Figures of papers, for orientation: MSE and MAE as they are printed there, not run here.

Keys are data set and horizon, or the mean over 96, 192, 336 and 720. Some of them score fewer windows (`drop_last`) or
choose by the test part; that is why peers are trained here as well.
"""

from __future__ import annotations

from typing import NamedTuple

MEAN = "mean"


class Published(NamedTuple):
    """Figures of one model. source: whose they are. figures: MSE/MAE by (data set, horizon or `MEAN`)."""

    model: str
    source: str
    figures: dict[tuple[str, int | str], str]


PUBLISHED = (
    Published(
        "Time-LLM",
        "Jin et al., ICLR 2024",
        {
            ("ETTh1", 96): ".362/.392",
            ("ETTh1", MEAN): ".408/.423",
            ("ETTh2", 96): ".268/.328",
            ("ETTh2", MEAN): ".334/.383",
        },
    ),
    Published(
        "Time-LLM, run again",
        "Tan et al., NeurIPS 2024",
        {
            ("ETTh1", 96): ".376/.402",
            ("ETTh1", MEAN): ".418/.432",
            ("ETTh2", 96): ".286/.346",
            ("ETTh2", MEAN): ".361/.396",
        },
    ),
    Published("RAFT", "its paper", {("ETTh1", MEAN): ".420", ("ETTh2", MEAN): ".359"}),
    Published(
        "TS-RAG, zero-shot",
        "its paper",
        {
            ("ETTh1", 96): ".378",
            ("ETTh1", MEAN): ".435",
            ("ETTh2", 96): ".280",
            ("ETTh2", MEAN): ".352",
            ("Exchange", 96): ".094",
        },
    ),
    Published(
        "PatchTST",
        "run again by TFB",
        {
            ("ETTh1", 96): ".377/.397",
            ("ETTh1", MEAN): ".419/.436",
            ("ETTh2", 96): ".274/.337",
            ("ETTh2", MEAN): ".351/.395",
            ("Exchange", 96): ".079/.200",
        },
    ),
    Published(
        "DUET",
        "its paper",
        {
            ("ETTh1", 96): ".352/.384",
            ("ETTh1", MEAN): ".398/.419",
            ("ETTh2", 96): ".270/.336",
            ("ETTh2", MEAN): ".334/.383",
            ("Exchange", 96): ".080/.198",
        },
    ),
    Published(
        "VisionTS, fine-tuned",
        "its paper",
        {
            ("ETTh1", 96): ".347/.376",
            ("ETTh1", MEAN): ".395/.409",
            ("ETTh2", 96): ".269/.328",
            ("ETTh2", MEAN): ".336/.382",
        },
    ),
)
