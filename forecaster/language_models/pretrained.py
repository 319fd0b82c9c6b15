"""Pretrained language models as a `Backbone`: found on this machine, read by transformers, cut to their first layers.

GPT-2, Qwen2/3, LLaMA and BERT are tested; whatever else AutoModel loads and takes embeddings works the same way.
Nothing is downloaded, no code that comes with a model is run (`trust_remote_code` stays off), and of weights only
safetensors is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, DynamicCache

from forecaster.errors import BackboneNotFoundError, ConfigError
from forecaster.language_models.backbone import Prefix, check_layers, weights_fingerprint

HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}
# The option that keeps the stored dtype was renamed in 4.56.
DTYPE = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"
POOLER = "pooler"  # nothing here reads one; where the files have none, transformers makes one up, each time another
WHY_NOT = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)  # what transformers raises


class PretrainedBackbone:
    """A `Backbone` around a model of transformers, in eval mode and without gradients of its own."""

    def __init__(self, model: Any, tokenizer: Any, reference: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.reference = model, tokenizer, reference
        self.width = int(self.word_embeddings.shape[1])
        self.max_positions: int | None = getattr(model.config, "max_position_embeddings", None)
        self.is_causal = _is_causal(self)

    @property
    def word_embeddings(self) -> Tensor:
        """[vocabulary, width]."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 [..., T] -> [..., T, width]."""
        return self.word_embeddings[ids]

    def forward(self, embeddings: Tensor, prefix: Prefix | None = None) -> Tensor:
        """[B, T, width] -> hidden states [B, T, width]. See `Backbone.forward`."""
        hidden: Tensor = self._run(embeddings, None if prefix is None else _as_cache(prefix)).last_hidden_state
        return hidden

    @torch.no_grad()
    def prefix(self, embeddings: Tensor, before: Prefix | None = None) -> Prefix:
        """Keys and values of [B, T, width]. See `Backbone.prefix`."""
        cache = DynamicCache() if before is None else _as_cache(before)
        self._run(embeddings, cache)
        return _from_cache(cache)

    def to(self, target: torch.device, dtype: torch.dtype | None = None) -> None:
        """See `Backbone.to`."""
        words = self.word_embeddings
        if words.device != target or dtype not in (None, words.dtype):
            self.model.to(target, dtype)

    def _run(self, embeddings: Tensor, cache: DynamicCache | None) -> Any:
        embeddings = embeddings.to(self.word_embeddings.dtype)
        # After a prefix the queries are few. In bf16 on a CPU, products written out then take a third of the time of
        # the fused kernel, forward and backward, for little memory; everywhere else the fused kernel wins.
        written_out = cache is not None and embeddings.device.type == "cpu" and embeddings.dtype == torch.bfloat16
        self.model.set_attn_implementation("eager" if written_out else "sdpa")
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None)


def load_pretrained(llm: str, *, layers: int | None, dtype: torch.dtype) -> PretrainedBackbone:
    """A folder, or `ID` or `ID@REVISION` in the cache. See `backbone.load_backbone` for what it raises."""
    folder, reference = _find(llm)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder, **LOCAL_ONLY)
            reference["layers"] = _adapt(llm, config, layers)
            model, report = AutoModel.from_pretrained(
                folder, config=config, attn_implementation="sdpa", use_safetensors=True, output_loading_info=True,
                **{DTYPE: "auto"}, **LOCAL_ONLY,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY)
    except ConfigError:
        raise
    except WHY_NOT as error:
        said = " ".join(str(error).split())[:200]
        raise BackboneNotFoundError(
            f"{llm}: {folder} cannot be loaded as a language model: {said}",
            hint="the folder needs config.json, safetensors weights and a tokenizer of a kind that transformers knows",
        ) from error
    _check_loaded(llm, model, report)
    _check_tokenizer(llm, tokenizer, model.get_input_embeddings().weight.shape[0])
    model.eval().requires_grad_(False)
    read = (weight for name, weight in model.named_parameters() if POOLER not in name)
    reference["fingerprint"] = weights_fingerprint(read)
    return PretrainedBackbone(model.to(dtype), tokenizer, reference)


def _find(llm: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a model on this machine, and its reference so far. Raises `BackboneNotFoundError`."""
    folder = Path(llm).expanduser()
    if folder.is_dir():
        _check_folder(llm, folder)
        return folder, {"id": llm, "revision": None}
    named = HUB_ID.fullmatch(llm)
    if named is None or llm.startswith((".", "~")):
        raise BackboneNotFoundError(
            f"there is no folder {llm}", hint="--llm takes builtin:tiny, a folder, or ID@REVISION"
        )
    name, revision = named["id"], named["revision"]
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        at = f" --revision {revision}" if revision else ""
        raise BackboneNotFoundError(
            f"{llm} is neither a folder nor in the Hugging Face cache of this machine",
            hint=f"fetch it with `hf download {name}{at}`, or give a folder (--llm PATH)",
        ) from error
    _check_folder(llm, folder)
    return folder, {"id": name, "revision": folder.name}  # a snapshot's folder is named by its commit


def _check_folder(llm: str, folder: Path) -> None:
    """Raise `BackboneNotFoundError` unless a folder looks like a model with safetensors weights."""
    if not (folder / "config.json").is_file():
        raise BackboneNotFoundError(f"{llm}: {folder} holds no language model (no config.json)", hint="check the path")
    if not any(folder.glob("*.safetensors")):
        others = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only {others[0]}" if others else "no weights"
        raise BackboneNotFoundError(
            f"{llm}: {folder} holds {found}, and weights are read from safetensors only",
            hint="fetch or save the model with safetensors weights (model.safetensors)",
        )


def _adapt(llm: str, config: Any, layers: int | None) -> int:
    """Set a model's config to its first layers and to fast, equal functions; how many layers those are."""
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{llm} is an encoder-decoder model ({config.model_type}), which cannot be used",
            hint="choose a model with one stack of layers, such as GPT-2, Qwen, LLaMA or BERT",
        )
    num = check_layers(llm, layers, int(config.num_hidden_layers))
    config.num_hidden_layers = num
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num]
    for name in ("activation_function", "hidden_act"):
        if getattr(config, name, None) == "gelu_new":
            setattr(config, name, "gelu_pytorch_tanh")  # the same function in one kernel instead of eight
    return num


def _check_loaded(llm: str, model: Any, report: dict[str, Any]) -> None:
    """Raise unless every weight that is used came from the file, and embeddings are as wide as hidden states."""
    missing = [name for name in report["missing_keys"] if POOLER not in name]
    missing += [str(key) for key in report.get("mismatched_keys", ())]
    if missing:
        raise BackboneNotFoundError(
            f"{llm}: {len(missing)} weights are not in its files or have another shape, first {missing[0]}",
            hint="fetch the model again",
        )
    width = model.get_input_embeddings().weight.shape[1]
    if width != model.config.hidden_size:
        raise ConfigError(
            f"{llm}: its embeddings are {width} wide, its hidden states {model.config.hidden_size}",
            hint="choose a model where both are the same",
        )


def _check_tokenizer(llm: str, tokenizer: Any, vocabulary: int) -> None:
    """Raise `BackboneNotFoundError` unless text becomes words that the model has; an empty tokenizer loads too."""
    ids = tokenizer.encode("forecast the next 96 steps", add_special_tokens=False)
    if len(set(ids)) < 2 or max(ids) >= vocabulary:
        raise BackboneNotFoundError(
            f"{llm}: its tokenizer does not fit: it knows {len(tokenizer)} tokens, the model {vocabulary}",
            hint="the folder needs the tokenizer's files too (tokenizer.json)",
        )


def _is_causal(backbone: PretrainedBackbone) -> bool:
    """Whether no position sees a later one. Tried rather than read: configs do not say it reliably."""
    first = backbone.word_embeddings[:3][None]
    second = first.clone()
    second[:, -1] = -first[:, -1] + 1
    with torch.no_grad():
        return torch.equal(backbone.forward(first)[:, 0], backbone.forward(second)[:, 0])


def _as_cache(prefix: Prefix) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.update(key, value, layer)
    return cache


def _from_cache(cache: DynamicCache) -> Prefix:
    return Prefix(keys=tuple(c.keys for c in cache.layers), values=tuple(c.values for c in cache.layers))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers prints while it loads: layers that are left out on purpose are no news."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
