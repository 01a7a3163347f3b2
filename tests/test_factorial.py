"""Effects of a factorial design against least squares, and the runs of studies/gap.yaml against their names."""

import sys
from pathlib import Path

import numpy as np
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.evaluation.factorial import aliases, half_fraction, measure_effects, plot_effects
from happywhale_nb.imaging.augmentation_colour import Grey
from happywhale_nb.imaging.augmentation_recipes import RECIPES
from happywhale_nb.networks.presets import configure

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import gap


@pytest.mark.parametrize("factors", [list("abc"), list("abcd"), list("abcde")])
def test_effects_are_twice_the_coefficients_of_least_squares(factors):
    design, rng = half_fraction(factors), np.random.default_rng(len(factors))
    precision = rng.uniform(size=(len(design), 30))
    effects = measure_effects(design, precision, np.repeat(np.arange(10).astype(str), 3))
    names = [name.split(" × ") for name in effects.table.index]
    columns = np.column_stack([np.ones(len(design)), *(design[name].prod(axis=1) for name in names)])
    expected = 2 * np.linalg.lstsq(columns, precision.mean(axis=1), rcond=None)[0][1:]
    np.testing.assert_allclose(effects.table["gain"], expected, atol=1e-12)
    assert (effects.table["low"] <= effects.table["gain"]).all() and (
        effects.table["gain"] <= effects.table["high"]
    ).all()
    assert effects.table["share"].sum() == pytest.approx(1)
    drawn = plot_effects(effects).axes[0].get_yticklabels()
    assert ("all together" in {label.get_text() for label in drawn}) == (len(factors) % 2 == 0)
    if len(factors) % 2 == 0:
        assert effects.gap["gain"] == pytest.approx((precision[-1] - precision[0]).mean())
    else:
        assert np.isnan(effects.gap["gain"]), "all high is not among the runs"


def test_aliases_agree_in_all_runs_and_others_do_not():
    design = half_fraction(list("abcd"))
    groups = aliases(design)
    signs = {name: tuple(design[name.split(" × ")].prod(axis=1)) for group in groups for name in group}
    for group in groups:
        assert len({signs[name] for name in group}) == 1
    assert len({signs[group[0]] for group in groups}) == len(groups) == 7


def test_precisions_or_levels_that_do_not_fit_are_refused():
    design = half_fraction(list("abc"))
    with pytest.raises(UserError, match=r"4 runs and 5 queries, but precisions of shape \(3, 5\)"):
        measure_effects(design, np.zeros((3, 5)), list("vwxyz"))
    with pytest.raises(UserError, match="c is not as often high as low"):
        measure_effects(design.assign(c=1), np.zeros((4, 2)), list("xy"))
    both = design.assign(c=design["a"])
    with pytest.raises(UserError, match="a and c change together"):
        measure_effects(both, np.zeros((4, 2)), list("xy"))
    with pytest.raises(UserError, match="0 queries"):
        measure_effects(design, np.zeros((4, 0)), [])
    with pytest.raises(UserError, match="three factors"):
        half_fraction(["a", "b"])


def config_of(name):
    model = gap.as_model(name, "")
    return configure(model["preset"], overrides=model["overrides"])


def test_runs_of_the_gap_study_are_what_their_names_say():
    names = [gap.name_of(row) for _, row in half_fraction(gap.FACTORS).iterrows()]
    assert len(set(names)) == 8 and set(names) < set(gap.MODELS)
    for name in names:
        config, high = config_of(name), {"all_low": "", "all_high": " ".join(gap.FACTORS)}.get(name, name)
        big = (config.backbone, config.image_size) == ("efficientnet_lite1", 288)
        assert big == ("backbone" in high) or (config.backbone, config.image_size) == ("efficientnet_lite0", 192)
        assert (config.margin_spread > 0) == ("loss" in high), name
        assert (":" in config.sources) == ("crops" in high) and (config.sources == "whole") == ("crops" not in high)
        assert (config.balance == "weights") == ("weights" in high), name
        assert (config.recipe, config.epochs, config.weights) == ("small", 20, "imagenet"), name
        assert (config.epsilon, config.start) == (1e-5, "he_normal"), name


def test_what_is_taken_away_from_the_gap_study_is_one_thing():
    whole = config_of("all_high")
    changed = {
        name: {f for f in vars(whole) if getattr(config_of(name), f) != getattr(whole, f)}
        for name in gap.MODELS
        if name.startswith("all_high_")
    }
    assert changed == {
        "all_high_without_resolution": {"image_size"},
        "all_high_without_grey": {"recipe"},
        "all_high_without_augmentation": {"recipe"},
        "all_high_without_pretraining": {"weights", "freeze_bn", "frozen_stride"},
        "all_high_without_weights": {"balance"},
        "all_high_oversampled": {"balance"},
    }
    colour = RECIPES["small_in_colour"]
    assert [step for step in RECIPES["small"] if not isinstance(step, Grey)] == list(colour) and len(colour) > 5


def test_gap_analysis_finds_the_effects_that_were_put_in():
    rng, individuals, found = np.random.default_rng(0), np.repeat(np.arange(12).astype(str), 5), {}
    for name in gap.MODELS:
        high, lost = name.startswith("all_high"), {"pretraining": 0.3, "oversampled": 0.2}
        gain = 0.2 * (high or "backbone" in name) + 0.1 * (high or "crops" in name) - lost.get(name.split("_")[-1], 0)
        found[name] = {
            "precision": 0.3 + gain + rng.normal(0, 0.02, 60),
            "individuals": individuals,
            "core_seconds": None,
        }
    effects, facts = gap.analyse("happywhale_boxed", found)
    mains = effects.table["gain"][gap.FACTORS]
    np.testing.assert_allclose(mains, [0.2, 0, 0.1, 0], atol=0.02)
    assert facts["gap"]["gain"] == pytest.approx(0.3, abs=0.02)
    assert facts["without"]["pretraining"]["low"] > 0.2
    assert facts["oversampling"]["gain"] == pytest.approx(-0.2, abs=0.02)
    assert set(gap.analyse("humpback", found)[0].table.index) >= {"backbone", "loss", "weights"}
