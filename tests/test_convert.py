"""A GGUF file becomes a folder that `--llm` takes; what is no such file is refused, and leaves nothing behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from forecaster.language_models.convert import CONVERTED, convert_gguf, main
from forecaster.language_models.loading import load_backbone

gguf = pytest.importorskip("gguf")
WIDTH, LAYERS, HEADS, HIDDEN = 32, 2, 2, 64
TOKENS = [chr(code) for code in range(33, 127)] + ["lo", "he", "hel", "hello", chr(0x120), "<|end|>"]


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """A LLaMA of random weights; matrices are stored with 8 bits, as a quantised file has them."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer, drawn = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges(["l o", "h e", "he l", "hel lo"])
    writer.add_bos_token_id(len(TOKENS) - 1)
    writer.add_eos_token_id(len(TOKENS) - 1)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,), "output": (len(TOKENS), WIDTH)}
    for layer in range(LAYERS):
        of_layer = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_down": (WIDTH, HIDDEN)}
        of_layer |= {f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        of_layer |= {f"ffn_{name}": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    for name, shape in shapes.items():
        values = (drawn.normal(size=shape) * 0.1).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values + 1)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_folder_is_a_language_model(tiny_gguf, tmp_path, capsys):
    folder = tmp_path / "made" / "tiny"
    assert main([str(tiny_gguf), str(folder)]) == 0
    assert f"--llm {folder}" in capsys.readouterr().out
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    told = json.loads((folder / CONVERTED).read_text())
    assert told["quantised"] == {"F32": 2 * LAYERS + 1, "Q8_0": 7 * LAYERS + 2}
    backbone = load_backbone(str(folder), layers=1)
    assert (backbone.width, backbone.is_causal) == (WIDTH, True)
    stored = gguf.GGUFReader(tiny_gguf).tensors
    words = next(each for each in stored if each.name == "token_embd.weight")
    expected = gguf.quants.dequantize(words.data, words.tensor_type)
    torch.testing.assert_close(backbone.word_embeddings, torch.from_numpy(expected).float())
    assert torch.isfinite(backbone.forward(backbone.embed(torch.tensor([[1, 2, 3]])))).all()


@pytest.mark.parametrize("kind", ["absent", "no model", "cut off", "folder there", "dtype"])
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(tiny_gguf, tmp_path, capsys, kind):
    source, folder, more = tmp_path / "some.gguf", tmp_path / "out", []
    content = tiny_gguf.read_bytes()
    if kind != "absent":
        source.write_bytes({"no model": b"GGUF but no model", "cut off": content[:3000]}.get(kind, content))
    if kind == "folder there":
        folder.mkdir()
    if kind == "dtype":
        more = ["--dtype", "int8"]
    assert main([str(source), str(folder), *more]) == (2 if kind in ("folder there", "dtype") else 4)
    assert capsys.readouterr().err.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir() if path != source) == (
        ["out"] if kind == "folder there" else []
    )


def test_a_precision_that_is_asked_for_is_written(tiny_gguf, tmp_path):
    assert convert_gguf(tiny_gguf, tmp_path / "half", dtype="bfloat16")["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
