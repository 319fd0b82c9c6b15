"""The path through the frozen language model: order of tokens, gradients, what is state and what is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_backbone import CAUSAL, FAMILIES, save_model

from forecaster.config import ModelConfig
from forecaster.errors import ConfigError
from forecaster.language_models.backbone import TINY
from forecaster.language_models.loading import load_backbone
from forecaster.model.llm_path import LlmPath
from forecaster.model.reprogramming import Reprogramming

CONFIG = ModelConfig(lookback=64, horizon=8, d_model=16, num_heads=4, d_ff=24, dropout=0.5, num_prototypes=40)
NUM = 6  # windows


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {family: str(save_model(tmp_path_factory.mktemp(family) / "model", family)) for family in FAMILIES}
    return made | {TINY: TINY}


def make_path(llm: str, config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> LlmPath:
    torch.manual_seed(0)
    path = LlmPath(config, load_backbone(llm, layers=2, dtype=dtype))
    torch.nn.init.normal_(path.head.weight, std=0.1)  # away from zero, so that something can be seen
    return path


def inputs(path: LlmPath, *, grad: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(grad)

    width, config = path.backbone.width, path.config
    return {
        "z": torch.randn(NUM, config.lookback, generator=generator),
        "patches": random(NUM, config.num_patches, config.d_model),
        "trend_token": random(NUM, 1, width),
        "retrieval_tokens": random(NUM, 2, width),
    }


@pytest.mark.parametrize("llm", [TINY, *CAUSAL])
def test_cached_is_the_whole_sequence_with_the_text_first(llm: str, names: dict[str, str]) -> None:
    path = make_path(names[llm], replace(CONFIG, prompt_layout="cached")).eval()
    given = inputs(path, grad=True)
    forecast = path(**given)
    words = path.reprogramming(given["patches"], path.backbone.word_embeddings)
    text = torch.cat([path.prompt.static_ids.expand(NUM, -1), path.prompt(given["z"])], dim=1)
    whole = torch.cat([path.backbone.embed(text), given["trend_token"], given["retrieval_tokens"], words], dim=1)
    hidden = path.backbone.forward(whole)[:, -CONFIG.num_patches :, : CONFIG.d_ff]
    expected = path.head(hidden.flatten(1))
    torch.testing.assert_close(forecast, expected, atol=1e-4, rtol=1e-4)
    leaves = [given[name] for name in ("patches", "trend_token", "retrieval_tokens")]
    cached_gradients = torch.autograd.grad(forecast.square().sum(), leaves)
    whole_gradients = torch.autograd.grad(expected.square().sum(), leaves)
    for ours, theirs in zip(cached_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    # The other order is another model.
    assert (make_path(names[llm]).eval()(**given) - forecast).abs().max() > 1e-3


@pytest.mark.parametrize("llm", [TINY, *FAMILIES])
def test_spec_is_trend_retrieval_text_patches(llm: str, names: dict[str, str]) -> None:
    path = make_path(names[llm]).eval()
    given = inputs(path)
    words = path.reprogramming(given["patches"], path.backbone.word_embeddings)
    text = torch.cat([path.prompt.static_ids.expand(NUM, -1), path.prompt(given["z"])], dim=1)
    whole = torch.cat([given["trend_token"], given["retrieval_tokens"], path.backbone.embed(text), words], dim=1)
    hidden = path.backbone.forward(whole)[:, -CONFIG.num_patches :, : CONFIG.d_ff]
    torch.testing.assert_close(path(**given), path.head(hidden.flatten(1)))


@pytest.mark.parametrize("layout", ["spec", "cached"])
@pytest.mark.parametrize("missing", [(), ("trend_token",), ("retrieval_tokens",), ("trend_token", "retrieval_tokens")])
def test_every_input_matters_and_gets_a_gradient(layout: str, missing: tuple[str, ...]) -> None:
    path = make_path(TINY, replace(CONFIG, prompt_layout=layout)).eval()
    given = inputs(path, grad=True) | dict.fromkeys(missing)
    forecast = path(**given)
    assert forecast.shape == (NUM, CONFIG.horizon)
    forecast.square().sum().backward()
    for name, value in given.items():
        if name != "z" and value is not None:
            assert (value.grad.abs().sum(dim=(1, 2)) > 0).all(), name
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in path.parameters())
    # z enters by the prompt alone.
    assert not torch.equal(path(**given | {"z": -given["z"]}), forecast)


def test_each_window_is_its_own() -> None:
    path = make_path(TINY, replace(CONFIG, prompt_layout="cached")).eval()
    given = inputs(path)
    whole = path(**given)
    for i in range(NUM):
        one = path(**{name: value[i : i + 1] for name, value in given.items()})
        torch.testing.assert_close(one, whole[i : i + 1], atol=1e-5, rtol=1e-4)


def test_cached_needs_a_causal_model(names: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="prompt_layout=cached needs a causal language model"):
        make_path(names["bert"], replace(CONFIG, prompt_layout="cached"))


def test_too_long_for_the_model(names: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"reads 512 positions, but 500 patches"):
        make_path(names["gpt2"], replace(CONFIG, lookback=4000))
    with pytest.raises(ConfigError, match="reads 512 positions"):
        make_path(names["gpt2"], replace(CONFIG, description="word " * 600))


def test_frozen_weights_are_no_state_and_the_head_starts_at_zero() -> None:
    path = LlmPath(CONFIG, load_backbone(TINY))
    frozen = {weight.data_ptr() for weight in path.backbone.weights.values()}
    assert not frozen & {weight.data_ptr() for weight in path.state_dict().values()}
    assert set(path.state_dict()) == {name for name, _ in path.named_parameters()}
    path.train()
    path.float()
    given = inputs(path)
    assert torch.equal(path(**given), torch.zeros(NUM, CONFIG.horizon))
    # State of one is state of another.
    other = make_path(TINY).eval()
    other.load_state_dict(make_path(TINY).state_dict())
    assert torch.equal(other(**given), make_path(TINY).eval()(**given))


def test_first_asked_in_inference_mode_then_trained() -> None:
    path = make_path(TINY, replace(CONFIG, prompt_layout="cached"))
    given = inputs(path)
    with torch.inference_mode():
        path(**given)
    path(**given).sum().backward()
    assert path.reprogramming.query.weight.grad is not None


@pytest.mark.parametrize("layout", ["spec", "cached"])
@pytest.mark.parametrize("llm", [TINY, "gpt2", "llama"])
def test_bf16_is_finite_and_near(llm: str, layout: str, names: dict[str, str]) -> None:
    config = replace(CONFIG, prompt_layout=layout)
    exact = make_path(names[llm], config).eval()
    half = make_path(names[llm], config, torch.bfloat16).eval()
    half.load_state_dict(exact.state_dict())
    given = inputs(half, grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        forecast = half(**given)
    forecast.float().sum().backward()
    expected = exact(**given)
    assert (forecast - expected).square().mean() < 0.01 * expected.square().mean()
    assert all(torch.isfinite(weight.grad).all() for weight in half.parameters())


def test_at_most_all_features_are_read() -> None:
    assert make_path(TINY, replace(CONFIG, d_ff=4096)).head.in_features == CONFIG.num_patches * 64


@pytest.mark.parametrize("vocabulary_mapping", [False, True])
def test_reprogramming_is_attention_to_prototypes(vocabulary_mapping: bool) -> None:
    torch.manual_seed(0)
    words = torch.randn(50, 12)
    module = Reprogramming(words, d_model=4, num_heads=2, num_prototypes=20, vocabulary_mapping=vocabulary_mapping)
    patches = torch.randn(3, 5, 4)
    prototypes = module.text_prototypes(words)
    assert prototypes.shape == (20, 12)
    heads = []
    for i in range(2):
        rows = slice(2 * i, 2 * i + 2)
        query, key, value = (
            source @ linear.weight[rows].T + linear.bias[rows]
            for source, linear in ((patches, module.query), (prototypes, module.key), (prototypes, module.value))
        )
        heads.append(torch.softmax(query @ key.T / math.sqrt(2), dim=-1) @ value)
    torch.testing.assert_close(module(patches, words), module.output(torch.cat(heads, dim=-1)))
    num_weights = sum(weight.numel() for weight in module.parameters())
    assert num_weights == 184 + (50 * 20 + 20 if vocabulary_mapping else 20 * 12)


def test_prototypes_are_words_and_never_more_than_there_are() -> None:
    words = torch.randn(50, 12)
    settings = {"d_model": 4, "num_heads": 2}
    few = Reprogramming(words, num_prototypes=20, **settings)
    assert all((row == words).all(dim=1).any() for row in few.prototypes)
    assert len(few.prototypes.unique(dim=0)) == 20
    assert torch.equal(Reprogramming(words, num_prototypes=1000, **settings).prototypes, words)
