"""What can be said of a hyperparameter by its name: each refusal names the flag and the value."""

import dataclasses

from common.config import RunConfig, check_config
from common.errors import UserError

import pytest

AT_LEAST_ONE = (
    "total_timesteps num_envs num_episodes batch_size buffer_size train_frequency gradient_steps "
    "target_frequency num_steps num_epochs minibatch_size eval_episodes max_sweeps"
).split()
NOT_NEGATIVE = (
    "checkpoint_every learning_starts entropy_coefficient value_coefficient exploration_steps"
).split()
FRACTION = "gamma gae_lambda polyak epsilon start_epsilon end_epsilon exploration_fraction".split()
POSITIVE = "learning_rate clip_epsilon max_grad_norm theta adam_epsilon".split()

WRONG = [
    *[(name, value, "at least 1") for name in AT_LEAST_ONE for value in (0, -3)],
    *[(name, value, "0 or more") for name in NOT_NEGATIVE for value in (-1, -0.5)],
    *[(name, value, "between 0 and 1") for name in FRACTION for value in (-0.01, 1.01)],
    *[(name, value, "greater than 0") for name in POSITIVE for value in (0.0, -1e-3)],
    *[("seed", value, "0 to 4294967295") for value in (-1, 2**32)],
    *[
        (name, value, "a finite number")
        for name in ("learning_rate", "gamma", "any_other_number")
        for value in (float("nan"), float("inf"), float("-inf"))
    ],
]
RIGHT = [
    *[(name, 1) for name in AT_LEAST_ONE],
    *[(name, 0) for name in NOT_NEGATIVE],
    *[(name, value) for name in FRACTION for value in (0.0, 1.0)],
    *[(name, 1e-9) for name in POSITIVE],
    *[("seed", value) for value in (0, 2**32 - 1)],
    ("any_other_number", -7.0),
    ("env_id", "CartPole-v1"),
    ("hidden_sizes", (64, 64)),
    ("means", (1e300, -1.0)),
    ("ridge", 1e-8),
    ("anneal", False),
]


def config_with(name, value):
    return dataclasses.make_dataclass("Config", [(name, type(value), value)], frozen=True)()


@pytest.mark.parametrize(("name", "value", "rule"), WRONG)
def test_a_wrong_value_is_refused_by_name(name, value, rule):
    with pytest.raises(UserError) as error:
        check_config(config_with(name, value))
    assert str(error.value) == f"--{name.replace('_', '-')} {value}: must be {rule}"


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_a_value_at_the_edge_is_taken(name, value):
    check_config(config_with(name, value))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_all_numbers_of_a_flag_must_be_finite(wrong):
    with pytest.raises(UserError) as error:
        check_config(config_with("means", (0.5, wrong)))
    assert str(error.value) == f"--means 0.5 {wrong}: must be finite numbers"


def test_every_wrong_flag_is_found_wherever_it_stands():
    config_class = dataclasses.make_dataclass(
        "Config", [("gamma", float, 0.99), ("batch_size", int, 0)], bases=(RunConfig,), frozen=True
    )
    with pytest.raises(UserError, match="--batch-size 0"):
        check_config(config_class())


def test_the_defaults_are_right():
    check_config(RunConfig())
