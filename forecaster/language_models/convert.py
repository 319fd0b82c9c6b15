"""A GGUF file as a folder that `--llm` takes: safetensors weights, config and tokenizer.

    python -m forecaster.language_models.convert SmolLM2-135M.gguf smollm2

Needs the package `gguf` (the extra of that name). The file's weights are often quantised: they are written as what they
stand for, in float32 or `--dtype bfloat16`, which brings back nothing that quantising lost. The folder says so in
`converted.json`. Nothing is downloaded, and no code that comes with a model is run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from forecaster.errors import BackboneNotFoundError
from memory_index import files
from memory_index.errors import MemoryIndexError, NotFoundError, UsageError
from memory_index.files import sha256_of

CONVERTED = "converted.json"
DTYPES = ("float32", "bfloat16")


def convert_gguf(source: Path, folder: Path, *, dtype: str = "float32") -> dict[str, Any]:
    """Write the model of a GGUF file into a new folder; returns what `converted.json` says.

    The folder appears by one rename, when all of it is written. Raises `UsageError` for a folder that is there already
    or another dtype, `BackboneNotFoundError` for a file that is not there or that transformers cannot read,
    `UsageError` without `gguf`.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: there is no such precision here", hint=f"choose {' or '.join(DTYPES)}")
    if folder.exists():
        raise UsageError(f"{folder} exists already", hint="choose another folder, or delete it")
    if not source.is_file():
        raise BackboneNotFoundError(f"there is no file {source}", hint="give a GGUF file")
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            "reading GGUF files needs gguf, which is not installed", hint="pip install 'gram-forecaster[gguf]'"
        )
    model, tokenizer = _read(source, dtype)
    told = {
        "source": source.name,
        "source_sha256": sha256_of(source.read_bytes()),
        "quantised": _kinds(source),
        "dtype": dtype,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_folder(folder.parent / f"{files.TEMPORARY}{folder.name}") as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / CONVERTED).write_text(json.dumps(told, indent=1) + "\n")
        files.publish_folder(staging, folder)
    return told


def _read(source: Path, dtype: str) -> tuple[Any, Any]:
    """Model without its quantisation, and tokenizer."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer ones can keep weights packed, which no other program reads
        whole["quantization_config"] = transformers.GgufConfig(dequantize=True)
    where = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **whole, **where)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    except Exception as error:  # whatever a damaged file makes of the reader
        said = " ".join(str(error).split())[:200]
        raise BackboneNotFoundError(
            f"{source} cannot be read as a language model: {said}",
            hint="transformers reads GGUF files of common architectures (LLaMA, Qwen2, Qwen3, GPT-2)",
        ) from error
    for config in (model.config, model.generation_config):  # or loading it would ask for a quantised model
        if config is not None and hasattr(config, "quantization_config"):
            del config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    return model.to(getattr(torch, dtype)), tokenizer


def _kinds(source: Path) -> dict[str, int]:
    """How many tensors of the file have which kind of number, as `Q4_K` or `F32`."""
    from gguf import GGUFReader

    kinds: dict[str, int] = {}
    for tensor in GGUFReader(source).tensors:
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    return dict(sorted(kinds.items()))


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 2 (usage), 4 (not found)."""
    parser = argparse.ArgumentParser(
        prog="python -m forecaster.language_models.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="the GGUF file")
    parser.add_argument("folder", type=Path, help="to write, for --llm")
    parser.add_argument("--dtype", default="float32", help="of the weights that are written: float32 or bfloat16")
    chosen = parser.parse_args(arguments)
    try:
        told = convert_gguf(chosen.source, chosen.folder, dtype=chosen.dtype)
    except MemoryIndexError as error:
        print(f"error: {error}" + (f"; {error.hint}" if error.hint else ""), file=sys.stderr)  # noqa: T201
        return 4 if isinstance(error, NotFoundError) else 2
    kinds = ", ".join(f"{num} {kind}" for kind, num in told["quantised"].items())
    print(f"{chosen.folder}: {told['num_parameters']:,} weights as {told['dtype']}, from {kinds} tensors")  # noqa: T201
    print(f"use it with: cli train ... --llm {chosen.folder}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
