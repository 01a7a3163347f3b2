"""Learning rates at every step against the same formulas in plain Python, and what a stored optimizer remembers."""

import math

import keras
import numpy as np
import pytest

from happywhale_nb.networks.schedules import LOWEST, TwoRateAdamW, WarmupCosine, WarmupExponential


def cosine(step, peak, total, warmup, floor):
    """Half a cosine after a straight line that reaches the peak in its last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2)


def exponential(step, peak, total, warmup, hold):
    """The paper's: a straight line, the peak, a straight line on a logarithmic axis."""
    if step < warmup:
        return LOWEST + (peak - LOWEST) * step / warmup
    share = min(max(step - warmup - hold, 0) / max(total - warmup - hold, 1), 1)
    return peak * (LOWEST / peak) ** share


@pytest.mark.parametrize("how", [(2e-3, 12, 4, 0.01), (1e-3, 9, 0, 0.1), (1e-3, 3, 3, 0.01)])
def test_WarmupCosine_is_its_formula_at_every_step(how):
    found = WarmupCosine(*how)(np.arange(15))
    np.testing.assert_allclose(found, [cosine(step, *how) for step in range(15)], rtol=1e-5)


@pytest.mark.parametrize("how", [(8e-5, 15, 3, 2), (1e-3, 9, 0, 0), (1e-3, 3, 2, 1)])
def test_WarmupExponential_is_its_formula_at_every_step(how):
    found = WarmupExponential(*how)(np.arange(18))
    np.testing.assert_allclose(found, [exponential(step, *how) for step in range(18)], rtol=1e-4)


@pytest.mark.parametrize("schedule", [WarmupCosine(2e-3, 12, 4, 0.2), WarmupExponential(8e-5, 15, 3, 2)])
def test_schedules_read_from_their_configuration_give_the_same_rates(schedule):
    again = type(schedule).from_config(schedule.get_config())
    np.testing.assert_array_equal(again(np.arange(18)), schedule(np.arange(18)))


def test_TwoRateAdamW_read_from_its_configuration_keeps_its_rate_and_without_a_head_is_adamw():
    again = TwoRateAdamW.from_config(TwoRateAdamW(0.01, head_lr_multiplier=7.0).get_config())
    assert again.head_lr_multiplier == 7
    moved = []
    for optimizer in (again, keras.optimizers.AdamW(0.01)):
        weight = keras.Variable(np.ones(2, "float32"))
        optimizer.apply([np.ones(2, "float32")], [weight])
        moved.append(1 - keras.ops.convert_to_numpy(weight))
    np.testing.assert_allclose(*moved, rtol=1e-4)
    assert (moved[0] > 0).all()
