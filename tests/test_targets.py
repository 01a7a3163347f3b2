"""What each photograph of a batch is asked for: class, margin, species, weight and the classes it is scored against."""

import numpy as np
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.networks.targets import Targets, class_margins, effective_weights

ROWS, PLAIN = np.arange(4), np.zeros(4, int)  # the first four photographs, none of them mirrored


def targets(**more):
    """Eight photographs of six classes, with a margin of its own for each class."""
    return Targets(np.array([3, 3, 1, 0, 2, 5, 4, 4]), np.linspace(0.1, 0.6, 6, dtype=np.float32), **more)


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"margin": np.pi / 2}, {"margin": 0.3, "margin_power": -3.0}])
def test_class_margins_outside_0_to_a_right_angle_are_refused(wrong):
    with pytest.raises(UserError, match=r"margins from .* to .*: they have to be in \[0, π/2\)"):
        class_margins(np.array([1, 2, 10]), **wrong)


def test_class_margins_of_a_class_without_photographs_are_those_of_one_photograph():
    found = class_margins(np.array([0, 1, 4]), 0.3, 0.5, 0.05)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0.35, 0.35, 0.3 / 2 + 0.05], rtol=1e-6)
    assert class_margins(np.array([7]), 0.0).tolist() == [0]


def test_effective_weights_are_their_formula_for_each_photograph():
    labels = np.array([0, 0, 0, 1, 2, 2])
    share = np.array([0.1 / (1 - 0.9**n) for n in (3, 3, 3, 1, 2, 2)])
    np.testing.assert_allclose(effective_weights(labels, beta=0.9), share / share.mean(), rtol=1e-6)


def test_Targets_by_default_ask_for_the_class_with_its_whole_margin_from_the_first_batch():
    plain = targets()
    assert (plain.spread, plain.twins, plain.ramp, plain.sample, plain.seed) == (0, 0, 0, 0, 0)
    found = plain.batch(ROWS, PLAIN, 0)
    assert set(found) == {"cosines", "chosen", "weights"} and found["chosen"].size == 0
    np.testing.assert_allclose(found["cosines"], [[3, 0.4], [3, 0.4], [1, 0.2], [0, 0.1]], rtol=1e-6)
    assert found["weights"].tolist() == [1, 1, 1, 1]
    assert all(part.dtype == np.float32 for part in (found["cosines"], found["weights"]))


@pytest.mark.parametrize(("number", "share"), [(0, 0.25), (2, 0.75), (3, 1), (50, 1)])
def test_Targets_with_a_ramp_of_four_steps_ask_for_a_quarter_more_of_the_margin_each_step(number, share):
    rising = targets(ramp=4, species=np.arange(8) % 2, species_margins=np.array([0.2, 0.4], np.float32))
    found = rising.batch(ROWS, PLAIN, number)
    np.testing.assert_allclose(found["cosines"][:, 1], share * np.array([0.4, 0.4, 0.2, 0.1]), rtol=1e-6)
    np.testing.assert_allclose(found["species"], np.c_[[0, 1, 0, 1], share * np.array([0.2, 0.4, 0.2, 0.4])], rtol=1e-6)


def test_Targets_with_a_spread_draw_margins_around_the_class_s_own_between_0_and_one_and_a_half():
    rows = np.zeros(4000, int)
    drawn = targets(spread=0.05).batch(rows, rows, 1)["cosines"][:, 1]
    assert abs(drawn.mean() - 0.4) < 0.005 and abs(drawn.std() - 0.05) < 0.003
    wide = targets(spread=5.0).batch(rows, rows, 1)["cosines"][:, 1]
    assert wide.min() == 0 and wide.max() == 1.5


def test_Targets_draw_anew_for_each_batch_and_seed_and_the_same_again():
    drawn = [targets(spread=0.1, sample=5, seed=seed).batch(ROWS, PLAIN, n) for seed, n in ((1, 0), (1, 1), (2, 0))]
    again = targets(spread=0.1, sample=5, seed=1).batch(ROWS, PLAIN, 0)
    assert all((again[name] == drawn[0][name]).all() for name in again)
    assert all((drawn[0]["cosines"][:, 1] != other["cosines"][:, 1]).any() for other in drawn[1:])


def test_Targets_with_twins_ask_a_mirrored_photograph_for_its_twin():
    mirrored = np.array([0, 1, 1, 0])
    found = Targets(np.array([2, 2, 0, 1]), np.full(6, 0.3, np.float32), twins=3).batch(ROWS, mirrored, 0)
    assert found["cosines"][:, 0].tolist() == [2, 5, 3, 1]


def test_Targets_weigh_photographs_by_their_own_weights():
    found = targets(weights=np.arange(8) / 2).batch(np.array([5, 0]), PLAIN[:2], 0)
    assert found["weights"].tolist() == [2.5, 0]


@pytest.mark.parametrize("sample", [3, 4, 5])
def test_Targets_with_a_sample_choose_the_batch_s_classes_and_others_each_once(sample):
    seen = set()
    for number in range(60):
        found = targets(sample=sample).batch(ROWS, PLAIN, number)
        chosen = found["chosen"].tolist()
        assert chosen == sorted(set(chosen)) and len(chosen) == sample and {0, 1, 3} <= set(chosen) <= set(range(6))
        assert found["chosen"].dtype == np.int32
        assert found["chosen"][found["cosines"][:, 0].astype(int)].tolist() == [3, 3, 1, 0]
        seen |= set(chosen)
    assert seen == ({0, 1, 3} if sample == 3 else set(range(6)))  # every other class has its turn


def test_Targets_with_a_sample_that_is_too_small_or_all_classes_are_refused():
    with pytest.raises(UserError, match="sampled_classes=2 has to hold the 3 classes of a batch"):
        targets(sample=2).batch(ROWS, PLAIN, 0)
    for sample in (6, 7):
        with pytest.raises(UserError, match=f"{sample} of 6 classes cannot be sampled"):
            targets(sample=sample).batch(ROWS, PLAIN, 0)
