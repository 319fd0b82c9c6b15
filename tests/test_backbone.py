"""Frozen language models through the public entry point: which are found, what they compute, what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from forecaster.errors import BackboneNotFoundError, ConfigError, RunIncompatibleError
from forecaster.language_models.backbone import TINY, Backbone, check_reference
from forecaster.language_models.loading import load_backbone
from forecaster.language_models.tiny import TOKENIZER, tiny_weights

CAUSAL = ("gpt2", "qwen2", "qwen3", "llama")
FAMILIES = (*CAUSAL, "bert")
WIDTH = 32
FINGERPRINT = "c755a23d6cc0dca744ce5877c725abb5b0b13972ef3875a27d932b405a140c2d"


def save_model(folder: Path, family: str, *, num_layers: int = 3) -> Path:
    """A small random model of a family with a tokenizer, as a folder."""
    common = {
        "vocab_size": 512,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    }
    wide = {"hidden_size": WIDTH, "intermediate_size": 64}
    grouped = {"num_key_value_heads": 2}
    config = {
        "gpt2": lambda: transformers.GPT2Config(**common, n_embd=WIDTH),
        "qwen2": lambda: transformers.Qwen2Config(**common, **wide, **grouped),
        "qwen3": lambda: transformers.Qwen3Config(**common, **wide, **grouped, head_dim=8),
        "llama": lambda: transformers.LlamaConfig(**common, **wide, **grouped),
        "bert": lambda: transformers.BertConfig(**common, **wide),
    }[family]()
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # the usual tiny initial weights would leave nothing to see
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_model(tmp_path_factory.mktemp(family) / "model", family) for family in FAMILIES}


@pytest.fixture(scope="module", params=[*FAMILIES, TINY])
def backbone(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Backbone:
    return load_backbone(str(folders.get(request.param, request.param)), layers=2)


def random_input(backbone: Backbone, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, backbone.width, generator=torch.Generator().manual_seed(1))


def test_says_what_it_is(backbone: Backbone, folders: dict[str, Path]) -> None:
    bert = backbone.reference["id"] == str(folders["bert"])
    assert backbone.is_causal is not bert
    assert backbone.width == (64 if backbone.reference["id"] == TINY else WIDTH)
    assert backbone.word_embeddings.shape == (512, backbone.width)
    assert backbone.max_positions == (2048 if backbone.reference["id"] == TINY else 512)
    assert backbone.reference["layers"] == 2
    assert json.loads(json.dumps(backbone.reference)) == backbone.reference
    ids = torch.tensor(backbone.encode("forecast the next 96 steps"))
    assert 0 < len(ids) < 26  # no special tokens, and more than letters
    assert torch.equal(backbone.embed(ids), backbone.word_embeddings[ids])


def test_a_pooler_that_is_not_in_the_files_does_not_decide_which_model_it_is(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Masked language models come without one; transformers then makes it up anew each time, and nothing reads it."""
    folder = tmp_path / "without-pooler"
    shutil.copytree(folders["bert"], folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    first, second = (load_backbone(str(folder)) for _ in range(2))
    check_reference(second, first.reference, "run")


def test_no_weight_has_a_gradient_and_the_input_has(backbone: Backbone) -> None:
    embeddings = random_input(backbone, 2, 5).requires_grad_()
    backbone.forward(embeddings).square().sum().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().sum(dim=-1) > 0).all()
    weights = backbone.weights.values() if hasattr(backbone, "weights") else backbone.model.parameters()
    assert all(not weight.requires_grad and weight.grad is None for weight in weights)


def test_eval_mode_survives_training_mode_of_what_holds_it(backbone: Backbone) -> None:
    holder = torch.nn.Linear(1, 1)
    holder.backbone = backbone
    holder.train()
    embeddings = random_input(backbone, 2, 5)
    assert torch.equal(backbone.forward(embeddings), backbone.forward(embeddings))  # no dropout
    assert not [name for name in holder.state_dict() if "backbone" in name]
    assert not hasattr(backbone, "model") or not any(module.training for module in backbone.model.modules())


def test_after_a_prefix_a_causal_model_says_what_it_says_of_the_whole(backbone: Backbone) -> None:
    if not backbone.is_causal:
        return
    static, own, rest = (random_input(backbone, num, length) for num, length in ((1, 4), (3, 3), (3, 6)))
    prefix = backbone.prefix(own, backbone.prefix(static).expand(3))
    assert prefix.length == 7
    whole = backbone.forward(torch.cat([static.expand(3, -1, -1), own, rest], dim=1))
    rest.requires_grad_()
    parts = backbone.forward(rest, prefix)
    torch.testing.assert_close(parts, whole[:, -6:], atol=1e-5, rtol=1e-4)
    parts.sum().backward()
    assert not any(key.requires_grad for key in prefix.keys + prefix.values)
    # What stands before matters, so the comparison above could have failed.
    assert (backbone.forward(rest) - parts).abs().max() > 1e-2


def test_bf16_weights_stay_bf16_under_autocast(backbone: Backbone, folders: dict[str, Path]) -> None:
    half = load_backbone(backbone.reference["id"], layers=2, dtype=torch.bfloat16)
    embeddings = random_input(backbone, 2, 5).requires_grad_()
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
            hidden = half.forward(embeddings)
        assert hidden.dtype == torch.bfloat16
    torch.testing.assert_close(hidden.float(), backbone.forward(embeddings), atol=0.25, rtol=0.1)
    hidden.float().sum().backward()
    assert torch.isfinite(embeddings.grad).all()
    # The weights are the same ones, in whatever dtype they are held.
    assert half.reference == backbone.reference


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_the_first_ones(family: str, folders: dict[str, Path]) -> None:
    whole = load_backbone(str(folders[family]))
    assert whole.reference["layers"] == 3
    first = load_backbone(str(folders[family]), layers=1)
    theirs = transformers.AutoModel.from_pretrained(folders[family])
    embeddings = random_input(first, 1, 4)
    with torch.no_grad():
        states = theirs(inputs_embeds=embeddings, output_hidden_states=True)
    torch.testing.assert_close(whole.forward(embeddings), states.last_hidden_state, atol=1e-5, rtol=1e-4)
    if family == "bert":  # no norm after the last layer
        torch.testing.assert_close(first.forward(embeddings), states.hidden_states[1], atol=1e-5, rtol=1e-4)
    assert first.reference["fingerprint"] != whole.reference["fingerprint"]
    with pytest.raises(ConfigError, match=r"llm_layers is 4, but .* has 3"):
        load_backbone(str(folders[family]), layers=4)


def test_gelu_new_is_one_kernel(folders: dict[str, Path]) -> None:
    assert load_backbone(str(folders["gpt2"])).model.config.activation_function == "gelu_pytorch_tanh"


def test_tiny_is_gpt2_and_always_the_same() -> None:
    tiny = load_backbone(TINY)
    assert tiny.reference == {"id": TINY, "revision": "1", "layers": 2, "fingerprint": FINGERPRINT}
    config = transformers.GPT2Config(
        vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=2048, activation_function="gelu_pytorch_tanh"
    )
    theirs = transformers.GPT2Model(config).eval()
    ours = tiny_weights(512)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
        theirs.wpe.weight.copy_(ours["positions"])
        for layer, block in enumerate(theirs.h):
            block.attn.c_attn.weight.copy_(ours[f"{layer}.qkv"])
            block.attn.c_proj.weight.copy_(ours[f"{layer}.mix"])
            block.mlp.c_fc.weight.copy_(ours[f"{layer}.in"])
            block.mlp.c_proj.weight.copy_(ours[f"{layer}.out"])
        embeddings = random_input(tiny, 2, 9)
        expected = theirs(inputs_embeds=embeddings).last_hidden_state
    torch.testing.assert_close(tiny.forward(embeddings), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="llm_layers is 3, but builtin:tiny has 2"):
        load_backbone(TINY, layers=3)
    with pytest.raises(ConfigError) as error:
        load_backbone("builtin:large")
    assert TINY in error.value.hint


def test_tiny_knows_every_text_and_needs_no_transformers(repository: Path) -> None:
    tiny = load_backbone(TINY)
    for text in ("Price of oil, \u00e9t\u00e9 2024: -3.5%", "\u4e2d\u6587 \U0001f600\n\t~"):
        assert tiny.tokenizer.decode(tiny.encode(text)) == text
    code = (
        "import sys; from forecaster.language_models.loading import load_backbone; load_backbone('builtin:tiny'); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)


def test_loads_where_a_folder_is_called_datasets(repository: Path, folders: dict[str, Path]) -> None:
    # It makes transformers believe that the library of that name is installed.
    assert (repository / "datasets").is_dir()
    load = "from forecaster.language_models.loading import load_backbone"
    code = f"{load}; print(load_backbone({str(folders['gpt2'])!r}).width)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == f"{WIDTH}\n"
    assert done.stderr == ""


def test_hub_id_comes_from_the_cache_at_its_revision(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    cache = tmp_path / "hub" / "models--someone--model"
    shutil.copytree(folders["gpt2"], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    from_main = load_backbone("someone/model")
    assert (from_main.reference["id"], from_main.reference["revision"]) == ("someone/model", commit)
    assert load_backbone(f"someone/model@{commit}").reference == from_main.reference
    # A folder with the same weights is the same model; another revision is not there.
    check_reference(load_backbone(str(folders["gpt2"])), from_main.reference, "run 1")
    with pytest.raises(BackboneNotFoundError) as error:
        load_backbone("someone/model@v2")
    assert "hf download someone/model --revision v2" in error.value.hint
    with pytest.raises(BackboneNotFoundError) as error:
        load_backbone("someone/other")
    assert "hf download someone/other" in error.value.hint
    assert "--llm PATH" in error.value.hint


def test_refuses_other_weights(folders: dict[str, Path]) -> None:
    expected = load_backbone(str(folders["gpt2"])).reference
    with pytest.raises(RunIncompatibleError, match=r"run 1 was trained with .* fingerprint"):
        check_reference(load_backbone(str(folders["llama"])), expected, "run 1")
    with pytest.raises(RunIncompatibleError, match="layers 3, not 1"):
        check_reference(load_backbone(str(folders["gpt2"]), layers=1), expected, "run 1")


def test_folders_that_are_no_model(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(BackboneNotFoundError, match=r"no config\.json"):
        load_backbone(str(tmp_path))
    with pytest.raises(BackboneNotFoundError, match="there is no folder"):
        load_backbone(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        BackboneNotFoundError, match=r"holds only pytorch_model\.bin, and weights are read from safetensors"
    ):
        load_backbone(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BackboneNotFoundError, match="cannot be loaded as a language model"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("broken", ["truncated", "a weight is missing", "a weight has another shape", "no tokenizer"])
def test_damaged_folders_are_one_line(broken: str, tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = shutil.copytree(folders["gpt2"], tmp_path / "model")
    file = folder / "model.safetensors"
    weights = load_file(file)
    if broken == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif broken == "no tokenizer":
        for found in folder.glob("tokenizer*"):
            found.unlink()
    else:
        name = next(name for name in weights if "mlp.c_fc.weight" in name)
        weights[name] = weights[name][:-1].clone()
        if broken == "a weight is missing":
            del weights[name]
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BackboneNotFoundError) as error:
        load_backbone(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.hint


def test_encoder_decoder_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = shutil.copytree(folders["gpt2"], tmp_path / "model")
    config = transformers.T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=512)
    config.save_pretrained(folder)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        load_backbone(str(folder))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = shutil.copytree(folders["gpt2"], tmp_path / "model")
    (folder / "code.py").write_text(f"open({os.fspath(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneNotFoundError, match="cannot be loaded"):
        load_backbone(str(folder))
    assert not (tmp_path / "ran").exists()
