"""The whole model as a function of tensors: what a switch takes away, what neighbours do, and what must not matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from forecaster_fixtures import WITHOUT_NETWORK, awaken, config_of, make_model, make_neighbours, model_config
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.language_models.backbone import TINY
from forecaster.language_models.loading import load_backbone
from forecaster.model.losses import total_loss
from forecaster.model.model import ForecastModel
from forecaster.model.types import Batch, ModelOutput
from forecaster.training.fit_networks import batch_loss

NUM, SPACES = 7, 4
SWITCHES = {
    "neither": {"use_tapr": False, "use_gram": False},
    "TAPR": {"use_gram": False},
    "GRA-M": {"use_tapr": False},
    "both": {},
    "no language model": {"use_llm": False},
    "no shortcut": {"use_shortcut": False},
    "as the design says": {"gram_form": "design"},
    "no network": WITHOUT_NETWORK,
    "cached prompt": {"prompt_layout": "cached"},
    "language model alone": {"use_tapr": False, "use_gram": False, "use_shortcut": False},
    "memory alone": WITHOUT_NETWORK | {"use_shortcut": False},
    "linear alone": WITHOUT_NETWORK | {"use_gram": False},
}
# What each switch takes away: beginnings of the names of weights, of the model or of a network.
OF_SWITCH = {
    "use_tapr": ("tapr.", "trend_residual.", "trend_token."),
    "use_gram": ("gating.", "retrieval_prompt.", "reading."),
    "mixes_memory": ("reading.",),
    "use_llm": ("llm_path.", "trend_token.", "retrieval_prompt."),
    "use_shortcut": ("shortcut.",),
    "use_network": ("networks.",),
}


def make_batch(config, *, num: int = NUM, seed: int = 0, **neighbours) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num, config.lookback + config.horizon, generator=generator)
    return Batch(
        context=steps[:, : config.lookback],
        future=steps[:, config.lookback :],
        unit=torch.rand(num, generator=generator) + 0.5,
        neighbours=make_neighbours(config, num, num_spaces=SPACES, **neighbours) if config.use_gram else None,
    )


def run(model: ForecastModel, batch: Batch, **options) -> ModelOutput:
    return model(batch.context, batch.neighbours, unit=batch.unit, **options)


def losses(model: ForecastModel, batch: Batch):
    """With networks those of a training step, in which each learns from the windows of the other's fold."""
    fold = torch.arange(len(batch)) % 2
    if len(model.networks) > 1:
        batch = replace(batch, admitted=torch.stack([fold != 0, fold != 1], dim=1))
    if len(model.networks):
        return batch_loss(model.train(), replace(batch, fold=fold), config_of(), 1.0)
    output = run(model, batch, fold=fold)
    return total_loss(output, batch, None, output.spread, config_of().train, 1.0)


def with_neighbours(batch: Batch, **changed) -> Batch:
    return replace(batch, neighbours=replace(batch.neighbours, **changed))


# Switches


@pytest.mark.parametrize("name", SWITCHES)
def test_a_part_that_is_switched_off_is_not_there(name):
    model = make_model(SPACES, **SWITCHES[name])
    config, state = model.config, set(model.state_dict())
    for switch, beginnings in OF_SWITCH.items():
        if not getattr(config, switch):
            assert not [key for key in state if key.removeprefix("networks.0.").startswith(beginnings)]
    batch = make_batch(config)
    output, parts = run(model, batch), losses(model, batch)
    num_bases = 2 * config.use_shortcut + config.use_network or 1
    assert output.weights.shape == (NUM, num_bases + SPACES * config.mixes_memory, config.horizon)
    assert output.networks.shape == (NUM, len(model.networks), config.horizon)
    assert (output.trend is not None) == config.use_tapr
    assert (output.gating is not None) == (config.use_gram and config.use_network)
    assert (parts.trend > 0) == config.use_tapr
    assert (parts.retrieval != 0) == (config.use_gram and config.use_network)
    assert torch.isfinite(parts.total)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_weight_that_is_there_learns(name):
    model = make_model(SPACES, **SWITCHES[name])
    learns = {key: parameter for key, parameter in model.named_parameters() if not key.startswith("value_gate")}
    assert bool(learns) == model.config.use_network
    if learns:
        losses(model, make_batch(model.config)).total.backward()
    for key, parameter in learns.items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", SWITCHES)
def test_parts_make_the_forecast(name):
    model = make_model(SPACES, **SWITCHES[name])
    output = run(model, make_batch(model.config))
    torch.testing.assert_close(output.weights.sum(dim=1), torch.ones(NUM, model.config.horizon))
    mixed = output.gate * output.model_part + (1 - output.gate) * output.memory_part
    torch.testing.assert_close(output.forecast, mixed)
    if not model.config.mixes_memory:
        assert torch.equal(output.forecast, output.model_part)
        assert (output.gate == 1).all()


@pytest.mark.parametrize(
    ("name", "num_tokens"), [("neither", 0), ("TAPR", 1), ("GRA-M", 1), ("both", 2), ("cached prompt", 2)]
)
def test_tokens_of_what_is_switched_on(name, num_tokens, monkeypatch):
    model = make_model(SPACES, **SWITCHES[name])
    path, lengths = model.networks[0].llm_path, []
    inner = path.backbone.forward

    def forward(embeddings, prefix=None):
        lengths.append(embeddings.shape[1] + (0 if prefix is None else prefix.length))
        return inner(embeddings, prefix)

    monkeypatch.setattr(path.backbone, "forward", forward)
    run(model, make_batch(model.config))
    text = path.prompt.num_static + path.prompt.num_dynamic
    assert lengths == [text + model.config.num_patches + num_tokens] * 2  # both networks share the language model


def test_what_belongs_together_is_required():
    config, backbone = model_config(), load_backbone(TINY, layers=1)
    with pytest.raises(ValueError, match="needs a backbone"):
        ForecastModel(config, num_spaces=SPACES, backbone=None)
    with pytest.raises(ValueError, match="needs a backbone"):
        ForecastModel(model_config(use_llm=False), num_spaces=SPACES, backbone=backbone)
    model = make_model(SPACES)
    batch = make_batch(config)
    with pytest.raises(ValueError, match="needs neighbours"):
        run(model, replace(batch, neighbours=None))
    with pytest.raises(ValueError, match="needs neighbours"):
        run(make_model(use_gram=False), batch)


# What a fresh model says


def test_a_fresh_model_is_its_closed_form_parts():
    """Before anything is fitted, bases and key spaces are averaged; a network says what the key spaces say."""
    config = model_config()
    model = ForecastModel(config, num_spaces=SPACES, backbone=load_backbone(TINY, layers=1)).eval()
    weight = torch.randn(config.lookback, config.horizon, generator=torch.Generator().manual_seed(3)) / 8
    model.shortcut.set_weights(weight.numpy())
    batch = make_batch(config)
    mean = batch.context.mean(dim=1, keepdim=True)
    deviation = batch.context.std(dim=1, keepdim=True, correction=0)
    spread = torch.maximum(deviation, config.spread_floor * batch.unit[:, None])
    linear = ((batch.context - mean) / spread) @ weight * spread + mean
    last = batch.context[:, -1:].expand_as(linear)
    memory = batch.neighbours.forecasts
    parts = torch.cat([torch.stack([linear, last, memory.mean(dim=1)], dim=1), memory], dim=1)
    output = run(model, batch)
    torch.testing.assert_close(output.forecast, parts.mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.model_part, parts[:, :3].mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.memory_part, parts[:, 3:].mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.gate, torch.full_like(output.gate, 3 / 7))


def test_blocks_of_time_have_maps_of_their_own():
    model = make_model(**WITHOUT_NETWORK, use_gram=False)
    batch = make_batch(model.config)
    first, second = (run(model, batch, fold=torch.full((NUM,), fold)).forecast for fold in (0, 1))
    torch.testing.assert_close(first, run(model, batch).forecast)  # `make_model` gives block 0 the map of the whole
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("name", ["both", "no language model"])
def test_each_fold_has_a_network_of_its_own(name):
    """What a window of a fold is told in training is the forecast of its network; else it is the mean of both."""
    model = make_model(SPACES, **SWITCHES[name])
    batch, fold = make_batch(model.config), torch.arange(NUM) % 2
    output, by_fold = run(model, batch), run(model, batch, fold=fold)
    torch.testing.assert_close(output.bases[:, -1], output.networks.mean(dim=1))
    own = output.networks[torch.arange(NUM), fold]
    torch.testing.assert_close(by_fold.bases[:, -1], own, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output.networks[:, 0], output.networks[:, 1], atol=1e-3)


def test_no_network_learns_from_a_window_that_it_must_not_see():
    model = make_model(SPACES, use_llm=False).train()
    batch = replace(make_batch(model.config), admitted=torch.tensor([[True, False]] * (NUM - 1) + [[False, True]]))
    spoiled = replace(batch, future=batch.future.clone())
    spoiled.future[-1] += 100
    gradients = []
    for each in (batch, spoiled):
        model.zero_grad()
        batch_loss(model, each, config_of(), 1.0).total.backward()
        gradients.append([[p.grad.clone() for p in network.parameters()] for network in model.networks])
    assert all(torch.equal(*pair) for pair in zip(gradients[0][0], gradients[1][0], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(gradients[0][1], gradients[1][1], strict=True))


# Neighbours


def test_neighbours_change_what_network_and_mix_say():
    model = make_model(SPACES)
    batch = make_batch(model.config)
    before = run(model, batch)
    moved = run(model, with_neighbours(batch, forecasts=batch.neighbours.forecasts + 1))
    torch.testing.assert_close(moved.memory_part, before.memory_part + 1)
    assert torch.equal(moved.bases[:, :2], before.bases[:, :2])
    assert ((moved.networks - before.networks).abs().amax(dim=2) > 1e-3).all()  # each reads them
    for name in ("futures", "contexts"):
        changed = getattr(batch.neighbours, name).clone()
        changed[:, 0, -1] += 5
        other = run(model, with_neighbours(batch, **{name: changed}))
        assert ((other.model_part - before.model_part).abs().amax(dim=1) > 1e-5).all()
        assert torch.equal(other.memory_part, before.memory_part)


@given(order=st.permutations(range(3)), holes=st.lists(st.booleans(), min_size=3, max_size=3))
def test_the_order_of_neighbours_does_not_matter(order, holes):
    model = _both()
    valid = torch.tensor([holes] * NUM)
    batch = make_batch(model.config, valid=valid)
    names = ("contexts", "futures", "similarity", "valid")
    turned = with_neighbours(batch, **{name: getattr(batch.neighbours, name)[:, order] for name in names})
    torch.testing.assert_close(run(model, turned).forecast, run(model, batch).forecast, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["both", "no language model", "no shortcut", "no network", "memory alone"])
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, -1e30])
def test_without_any_neighbour_the_model_part_is_the_forecast_bit_for_bit(name, value):
    model = make_model(SPACES, **SWITCHES[name])
    nothing = {
        "valid": torch.zeros(NUM, 3, dtype=torch.bool),
        "found": torch.zeros(NUM, SPACES, dtype=torch.bool),
    }
    batch = make_batch(model.config, **nothing)
    spoiled = with_neighbours(
        batch, **{n: torch.full_like(getattr(batch.neighbours, n), value) for n in ("forecasts", "contexts", "futures")}
    )
    output = run(model, spoiled)
    assert torch.equal(output.forecast, output.model_part)
    assert torch.equal(output.gate, torch.ones_like(output.gate))
    assert torch.equal(output.forecast, run(model, batch).forecast)
    assert torch.isfinite(output.memory_part).all()
    if output.gating is not None:
        assert torch.equal(output.gating.gate, torch.ones(NUM))
    if not len(model.networks):
        return
    losses(model, spoiled).total.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key


@settings(max_examples=40)
@given(data=st.data(), value=st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30, 0.0]))
def test_what_unused_slots_hold_does_not_matter(data, value):
    model = _both()
    bits = st.lists(st.booleans(), min_size=NUM * 3, max_size=NUM * 3)
    valid = torch.tensor(data.draw(bits)).reshape(NUM, 3)
    found = torch.tensor(data.draw(st.lists(st.booleans(), min_size=NUM * SPACES, max_size=NUM * SPACES)))
    found = found.reshape(NUM, SPACES)
    batch = make_batch(model.config, valid=valid, found=found)
    near = batch.neighbours
    spoiled = with_neighbours(
        batch,
        forecasts=near.forecasts.masked_fill(~found[..., None], value),
        contexts=near.contexts.masked_fill(~valid[..., None], value),
        futures=near.futures.masked_fill(~valid[..., None], value),
    )
    for ours, theirs in zip(run(model.eval(), batch)[:7], run(model, spoiled)[:7], strict=True):
        assert torch.equal(ours, theirs)


def _both() -> ForecastModel:
    """One for all examples."""
    if "both" not in _MADE:
        _MADE["both"] = make_model(SPACES)
    return _MADE["both"]


_MADE: dict[str, ForecastModel] = {}


# Windows


def test_each_window_is_its_own():
    model = make_model(SPACES)
    batch = make_batch(model.config)
    whole = run(model, batch).forecast
    for number in range(NUM):
        alone = run(model, batch.take(slice(number, number + 1))).forecast
        torch.testing.assert_close(alone[0], whole[number], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "level"), [(1.0, 1e6), (1e-3, 0.0), (1e6, -1e6), (1.0, -4096.0)])
def test_level_and_scale_of_a_window_carry_over_to_its_forecast(scale, level):
    model = make_model(SPACES)
    batch = make_batch(model.config)
    grid = (batch.context * 16).round() / 16  # so that a level of a million rounds nothing away
    near = batch.neighbours
    small = with_neighbours(replace(batch, context=grid), forecasts=(near.forecasts * 16).round() / 16)
    large = with_neighbours(
        replace(small, context=grid * scale + level, unit=batch.unit * scale),
        forecasts=small.neighbours.forecasts * scale + level,
    )
    expected, made = run(model, small), run(model, large)
    tolerance = 1e-3 + abs(level / scale) * 2e-7
    torch.testing.assert_close((made.forecast - level) / scale, expected.forecast, rtol=0, atol=tolerance)
    torch.testing.assert_close(made.spread / scale, expected.spread, rtol=1e-4, atol=0)


def test_flat_windows_are_finite():
    model = make_model(SPACES)
    for level in (0.0, 3.0, -1e6):
        batch = make_batch(model.config)
        flat = replace(batch, context=torch.full_like(batch.context, level))
        output = run(model, flat)
        assert torch.isfinite(output.forecast).all()
        torch.testing.assert_close(output.spread, model.config.spread_floor * batch.unit)
        assert torch.equal(output.location, torch.full((NUM,), level))
        losses(model, flat).total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("lookback", "horizon"), [(32, 1), (45, 8), (16, 3), (96, 20)])
def test_any_lookback_and_horizon(lookback, horizon):
    model = make_model(SPACES, lookback=lookback, horizon=horizon)
    assert run(model, make_batch(model.config)).forecast.shape == (NUM, horizon)


# The frozen language model


def test_the_language_model_is_not_trained_or_kept():
    model = make_model(SPACES)
    frozen = model.networks[0].llm_path.backbone.weights
    before = {name: weight.clone() for name, weight in frozen.items()}
    held = {weight.data_ptr() for weight in frozen.values()}
    assert not held & {parameter.data_ptr() for parameter in model.parameters()}
    assert not held & {value.data_ptr() for value in model.state_dict().values()}
    optimizer = torch.optim.SGD(model.networks.parameters(), lr=0.1)
    losses(model.train(), make_batch(model.config)).total.backward()
    optimizer.step()
    for name, weight in frozen.items():
        assert weight.grad is None
        assert not weight.requires_grad
        assert torch.equal(weight, before[name])


def test_training_mode_without_dropout_changes_nothing():
    """What is frozen stays in eval mode, whoever calls `train`."""
    model = make_model(SPACES)
    batch = make_batch(model.config)
    evaluated = run(model.eval(), batch).forecast
    assert torch.equal(run(model.train(), batch).forecast, evaluated)


def test_dropout_is_only_there_in_training():
    torch.manual_seed(0)
    model = ForecastModel(config_of(dropout=0.3).model, num_spaces=SPACES, backbone=load_backbone(TINY, layers=1))
    awaken(model)
    batch = make_batch(model.config)
    assert not torch.equal(run(model.train(), batch).forecast, run(model, batch).forecast)
    assert torch.equal(run(model.eval(), batch).forecast, run(model, batch).forecast)


def test_the_same_seed_makes_the_same_model():
    one, same, other = (make_model(SPACES, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_half_precision_is_near_and_leaves_the_mix_alone():
    model = make_model(SPACES)
    batch = make_batch(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        half = run(model, batch)
    whole = run(model, batch)
    assert torch.equal(half.weights, whole.weights)
    assert torch.equal(half.memory_part, whole.memory_part)
    assert half.forecast.dtype == torch.float32
    torch.testing.assert_close(half.forecast, whole.forecast, rtol=0.05, atol=0.1)
