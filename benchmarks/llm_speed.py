"""One training step of the path through a frozen language model of GPT-2's shape, against the straightforward form.

    python -m benchmarks.llm_speed

A step is forward, backward and AdamW of patch embedding, trend and retrieval token and `LlmPath`: lookback 512,
horizon 96, batch 8 x 7 variates = 56 windows, GPT-2 (768 wide, 12 heads, 50257 words), its first 6 layers, 2 threads.
The weights are random, which costs what trained ones cost, and the tokenizer is a byte-level BPE of GPT-2's size
trained on the texts at hand (Python's library and this project), so that prompts have about as many tokens as GPT-2's
own would make of them. The description of the data in the prompt is the same in all forms. Every form runs in a
process of its own, and the forms take their steps in turns.

What has to be done, in numbers. A layer has 7.1 million weights in matrices, 6 have 42.5 million. One position costs
2 x 42.5M = 85 MFLOP forward and as much backward (towards the input only: nothing is computed for frozen weights).

    straightforward   300 positions x 56 x 170 MFLOP = 2.9 TFLOP, + 0.15 for the vocabulary mapping, float32
    spec              246 positions x 56 x 170       = 2.3 TFLOP
    cached            66 x 56 x 170 + 23 x 56 x 85   = 0.74 TFLOP (static text: none)

So at equal speed per FLOP `spec` gains 1.3 times and `cached` 4.1 times; the rest comes from bf16, whose products run
about 4 times as fast on a CPU with AVX512-BF16, less what is not products. An unfused GELU keeps at least 4 x 3072
numbers per position and layer for the backward pass, eager attention 2 x 12 x 300, the rest 6 x 768: with 4 bytes
each, 10 GB in all. bf16 and fused kernels keep about 15 kB per position and layer, 1.2 GB for `spec` and 0.35 GB for
`cached`, beside 0.7 GB of weights and libraries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import Figure, peak_rss_mb, show

LOOKBACK, HORIZON, NUM_WINDOWS, LAYERS, THREADS = 512, 96, 56, 6, 2
DESCRIPTION = (
    "The Electricity Transformer Temperature (ETT) is a crucial indicator in the electric power long-term deployment. "
    "This dataset consists of 2 years data from two separated counties in China. To explore the granularity on the "
    "Long sequence time-series forecasting (LSTF) problem, different subsets are created, {ETTh1, ETTh2} for "
    "1-hour-level and ETTm1 for 15-minutes-level. Each data point consists of the target value 'oil temperature' and "
    "6 power load features. The train/val/test is 12/4/4 months."
)
FORMS = {
    "straightforward": "straightforward, float32",
    "spec-bf16": "`spec`, bf16",
    "cached-bf16": "`cached`, bf16",
    "spec-float32": "`spec`, float32",
    "cached-float32": "`cached`, float32",
}
GOALS = {"spec-bf16": 5, "cached-bf16": 12}


def main() -> None:
    """Measure all forms, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each form")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="a folder made by an earlier run, to save making it")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.form is not None:
        serve(options.form, options.model)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "gpt2"
        if not (model / "config.json").exists():
            make_model(model)
        figures = measure(model, options.steps)
    show("A training step through a frozen GPT-2", "python -m benchmarks.llm_speed", figures, options.out)


def measure(model: Path, num_steps: int) -> list[Figure]:
    """Every form in a process of its own; one step of each in turn."""
    command = [sys.executable, "-m", "benchmarks.llm_speed", "--model", str(model), "--form"]
    processes = {
        form: subprocess.Popen([*command, form], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for form in FORMS
    }
    answers: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for _ in range(num_steps + 1):  # the first is not counted
        for form, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            answers[form].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    base = _figures(answers["straightforward"])
    result = []
    for form, name in FORMS.items():
        seconds, peak, num_positions = _figures(answers[form])
        goal = f"{GOALS[form]} times faster, a third of the memory" if form in GOALS else ""
        beside = f"{base[0] / seconds:.1f} times faster, {peak / base[1]:.2f} of its memory, {num_positions} positions"
        result.append(Figure(name, f"{seconds:.2f} s a step, {peak:,.0f} MB peak", goal, beside))
    return result


def serve(form: str, model: Path) -> None:
    """One training step for each line of standard input; its time and the peak memory so far as JSON."""
    step, num_positions = training_step(form, model)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "peak_mb": peak_rss_mb(), "positions": num_positions}), flush=True)


def training_step(form: str, model: Path) -> tuple[Any, int]:
    """What does one step of a form, and how many positions the language model sees per window."""
    from forecaster.model.patching import PatchEmbedding

    torch.manual_seed(0)
    z = torch.randn(NUM_WINDOWS, LOOKBACK).cumsum(dim=1)
    z = (z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, keepdim=True)
    future = torch.randn(NUM_WINDOWS, HORIZON)
    features = torch.randn(NUM_WINDOWS, 1, 32)
    path, num_positions = _path(form, model, z)
    network = nn.ModuleDict(
        {
            "patches": PatchEmbedding(LOOKBACK, 16, 8, 32, dropout=0.1),
            "trend": nn.Linear(32, 768),
            "retrieval": nn.Linear(32, 768),
            "path": path,
        }
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=form.endswith("bf16")):
            forecast: Tensor = path(
                z, network["patches"](z), network["trend"](features), network["retrieval"](features)
            )
        (forecast.float() - future).square().mean().backward()
        optimizer.step()

    return step, num_positions


def _path(form: str, model: Path, z: Tensor) -> tuple[nn.Module, int]:
    from forecaster.config import ModelConfig
    from forecaster.language_models.loading import load_backbone
    from forecaster.model.llm_path import LlmPath

    num_patches = (LOOKBACK - 16) // 8 + 2
    if form == "straightforward":
        from benchmarks.straightforward import StraightforwardPath

        straightforward = StraightforwardPath(
            model,
            description=DESCRIPTION,
            num_layers=LAYERS,
            lookback=LOOKBACK,
            horizon=HORIZON,
            num_patches=num_patches,
        )
        return straightforward, 2 + straightforward.prompts(z)[0].shape[1] + num_patches
    layout, precision = form.split("-")
    config = ModelConfig(
        lookback=LOOKBACK, horizon=HORIZON, prompt_layout=layout, llm=str(model), description=DESCRIPTION
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    path = LlmPath(config, load_backbone(str(model), layers=LAYERS, dtype=dtype))
    num_text = path.prompt.num_dynamic + (path.prompt.num_static if layout == "spec" else 0)
    return path, 2 + num_text + num_patches


def make_model(folder: Path) -> None:
    """A folder with a GPT-2 of random weights and a tokenizer of its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2Model(GPT2Config()).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) + sorted(Path("docs").glob("*.md"))
    texts += sorted((Path(sysconfig.get_paths()["purelib"]) / "torch").rglob("*.py"))
    trainer = trainers.BpeTrainer(
        vocab_size=50257, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(text) for text in texts], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def _figures(answers: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Median seconds without the first step, the peak memory in MB, and positions."""
    seconds = statistics.median(answer["seconds"] for answer in answers[1:])
    return seconds, answers[-1]["peak_mb"], answers[-1]["positions"]


if __name__ == "__main__":
    main()
