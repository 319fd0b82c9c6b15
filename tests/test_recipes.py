"""A recipe is settings that load, and that train, here on a tiny table, the full model of the design."""

from __future__ import annotations

from pathlib import Path

import pytest
from forecaster_fixtures import memory_of, train_small

from forecaster.config import Config, read_settings
from forecaster.predictor import load_predictor

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_what_the_design_says(recipe, tmp_path):
    settings = read_settings(recipe)
    model = Config.from_dict(settings | {"lookback": 512, "horizon": 96}).model
    assert (model.use_tapr, model.use_gram, model.use_llm, model.use_shortcut) == (True, True, True, False)
    assert model.is_network_alone
    small = settings | {"n_scales": 2, "patch_length": 8, "patch_stride": 4, "num_prototypes": 16, "max_steps": 3}
    trained = train_small(memory_of(tmp_path / "indexes"), tmp_path / "run", **small | {"memory_k": 5})
    assert trained.result.steps == 3
    loaded = load_predictor(trained.run, device="cpu").model
    assert loaded.base_names == ("network",)
    assert loaded.networks[0].gating is not None


def test_there_is_a_recipe():
    assert RECIPES
