"""Settings: when a network is asked for, and that what is stated is what is trained."""

from __future__ import annotations

import pytest

from forecaster.config import OF_NETWORK, Config, ModelConfig, TrainConfig, preset_settings
from forecaster.errors import ConfigError

SIZES = {"lookback": 96, "horizon": 24}


def parts_of(**stated: object) -> tuple[bool, bool, bool]:
    model = Config.from_dict(SIZES | stated).model
    return model.use_network, model.use_tapr, model.use_llm


def test_the_value_gate_alone_is_the_default():
    assert parts_of() == (False, False, False)
    assert Config.from_dict(SIZES).model == ModelConfig(**SIZES)


def test_what_concerns_the_network_asks_for_it():
    assert parts_of(use_network=True) == (True, True, True)
    assert parts_of(llm="builtin:tiny") == (True, True, True)
    assert parts_of(n_scales=2) == (True, True, True)
    assert parts_of(use_tapr=False) == (True, False, True)
    assert parts_of(use_tapr=False, use_llm=False) == (True, False, False)
    assert parts_of(**preset_settings("6gb", lookback=96, num_series=7, llm="some/folder")) == (True, True, True)


@pytest.mark.parametrize("name", ["memory_k", "gate_shrinkage", "seed", "epochs", "use_gram", "batch_size"])
def test_what_concerns_every_model_does_not(name):
    value = Config.from_dict(SIZES).to_dict()[name]
    assert parts_of(**{name: value}) == (False, False, False)


def test_a_network_that_is_refused_has_no_parts():
    assert parts_of(use_network=False, n_scales=2) == (False, False, False)
    with pytest.raises(ConfigError, match="use_tapr is part of the network, which is off") as caught:
        parts_of(use_network=False, use_tapr=True)
    assert caught.value.hint == "set use_network=true, or use_tapr=false"


def test_every_name_of_the_network_is_a_setting():
    assert set(ModelConfig.__dataclass_fields__) | set(TrainConfig.__dataclass_fields__) >= OF_NETWORK


@pytest.mark.parametrize("stated", [{}, {"use_network": True}, {"use_llm": False}])
def test_settings_read_back_are_the_same(stated):
    config = Config.from_dict(SIZES | stated)
    assert Config.from_dict(config.to_dict()) == config
    assert config.changed(seed=1).model == config.model


def test_a_lookback_too_short_for_the_network_is_long_enough_without():
    short = {"lookback": 12, "horizon": 4}
    assert not Config.from_dict(short).model.use_network
    with pytest.raises(ConfigError, match="shorter than a patch of 16 steps"):
        Config.from_dict(short | {"use_network": True})


def test_blocks_of_time_have_numbers_in_a_byte():
    assert Config.from_dict(SIZES | {"num_folds": 127}).train.num_folds == 127
    with pytest.raises(ConfigError, match="num_folds is 128, but must be at most 127"):
        Config.from_dict(SIZES | {"num_folds": 128})


@pytest.mark.parametrize(("num_series", "windows"), [(1, 8), (7, 56), (64, 512), (65, 56), (3000, 56)])
def test_a_batch_of_a_preset_is_one_of_moments(num_series, windows):
    assert preset_settings("6gb", lookback=96, num_series=num_series)["batch_size"] == windows


def test_the_design_has_no_shortcut_and_asks_for_the_network():
    design = Config.from_dict({"lookback": 96, "horizon": 24, "gram_form": "design"}).model
    assert (design.use_network, design.use_shortcut, design.mixes_memory) == (True, False, False)
    assert design.is_network_alone
    for wrong in ({"use_shortcut": True}, {"use_network": False}):
        with pytest.raises(ConfigError):
            Config.from_dict({"lookback": 96, "horizon": 24, "gram_form": "design", **wrong})
