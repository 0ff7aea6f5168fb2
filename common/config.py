"""Flags that every script shares, and the checks that need nothing but a flag's name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.errors import UserError


@dataclass(frozen=True)
class RunConfig:
    """Flags that every script has; a script's own `Config` adds its hyperparameters."""

    run_dir: str = ""  # folder for results; empty: runs/<script>/<env>/seed<seed>-<time>
    resume: str = ""  # run directory of an interrupted run to go on with; its flags are kept
    eval_episodes: int = 100  # fresh greedy episodes after training
    capture_video: bool = False  # record an episode of the trained agent to videos/
    # steps between checkpoints, 0: a tenth of the run but at least 1,250 steps of each environment
    # (Atari: 12,500); each begins fresh seeded episodes in every run, interrupted or not (the cut
    # counts as truncation), so that resuming is exact
    checkpoint_every: int = 0


def check_config(config: Any) -> None:
    """Checks what can be said of a hyperparameter by its name alone, in every script.

    Raises:
        UserError: naming the flag, what was given and what would work.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag} {value}: must be a finite number")
        given = " ".join(map(str, value)) if isinstance(value, tuple) else value
        if isinstance(value, tuple) and not all(map(_finite, value)):
            raise UserError(f"{flag} {given}: must be finite numbers")
        rule = _RULES.get(field.name)
        if rule is not None and not rule[0](value):
            raise UserError(f"{flag} {given}: must be {rule[1]}")


def check_replay_config(config: Any, forks: bool = False) -> None:
    """`check_config`, and what the flags of a script with a replay buffer must be to each other.

    Args:
        config: the hyperparameters.
        forks: whether the network forks in its last hidden layer, so that there must be one.

    Raises:
        UserError: naming the flag, what was given and what would work.
    """
    check_config(config)
    if forks and not config.hidden_sizes:
        raise UserError(
            "--hidden-sizes: must name at least one layer, in which the network forks; "
            "--hidden-sizes 84 would do"
        )
    if config.batch_size > config.buffer_size:
        raise UserError(
            f"--batch-size {config.batch_size}: larger than --buffer-size {config.buffer_size}; "
            "make the batch smaller or the buffer larger"
        )
    if config.train_frequency < config.num_envs:
        raise UserError(
            f"--train-frequency {config.train_frequency}: less than --num-envs {config.num_envs}, "
            "which all step before a training; raise both it and --gradient-steps"
        )


def _finite(x: Any) -> bool:
    return not isinstance(x, float) or math.isfinite(x)


def _at_least_one(x: Any) -> bool:
    return x >= 1


def _at_least_two(x: Any) -> bool:
    return x >= 2


def _not_negative(x: Any) -> bool:
    return x >= 0


def _fraction(x: Any) -> bool:
    return 0.0 <= x <= 1.0


def _seed(x: Any) -> bool:
    return 0 <= x < 2**32


def _sizes(x: Any) -> bool:
    return all(size >= 1 for size in x)


def _step_size(x: Any) -> bool:
    return 0.0 < x <= 1.0


def _blackjack_sum(x: Any) -> bool:
    return 4 <= x <= 22  # 22: never sticks


def _below_one(x: Any) -> bool:
    return 0.0 <= x < 1.0


def _positive(x: Any) -> bool:
    return x > 0.0


def _ridge(x: Any) -> bool:
    return x >= 1e-8  # below, rounding makes the inverse of A indefinite


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "total_timesteps num_envs num_episodes batch_size buffer_size train_frequency "
            "gradient_steps target_frequency num_steps num_epochs minibatch_size eval_episodes "
            "max_sweeps max_improvements num_runs n_step hidden_units sequence_length num_samples "
            "num_visitors num_logs num_users max_steps run_episodes steps_per_call latent_size "
            "repeats lstm_units value_steps policy_delay"
        ).split(),
        (_at_least_one, "at least 1"),
    ),
    **dict.fromkeys(
        (
            "checkpoint_every learning_starts entropy_coefficient value_coefficient "
            "exploration_steps bias_runs sweep_episodes"
        ).split(),
        (_not_negative, "0 or more"),
    ),
    **dict.fromkeys(
        (
            "gamma gae_lambda polyak epsilon start_epsilon end_epsilon exploration_fraction "
            "success_rate prioritization_exponent start_beta"
        ).split(),
        (_fraction, "between 0 and 1"),
    ),
    **dict.fromkeys(
        (
            "learning_rate value_learning_rate clip_epsilon max_grad_norm theta adam_epsilon "
            "temperature"
        ).split(),
        (_positive, "greater than 0"),
    ),
    **dict.fromkeys(
        "prior_alpha prior_beta prior_std posterior_scale concentration".split(),
        (_positive, "greater than 0"),
    ),
    "ridge": (_ridge, "at least 1e-8, or rounding errors outgrow what is learned"),
    "step_size": (_fraction, "between 0 and 1"),
    "num_atoms": (_at_least_two, "at least 2"),
    "stick_on": (_blackjack_sum, "4 to 22"),
    **dict.fromkeys(
        "confidence ucb_confidence sigma click_value".split(), (_not_negative, "0 or more")
    ),
    "mode_std": (_positive, "greater than 0"),
    **dict.fromkeys("momentum beta1 dropout".split(), (_below_one, "at least 0 and less than 1")),
    "temperature_decay": (_step_size, "greater than 0 and at most 1"),
    "alpha": (_step_size, "greater than 0 and at most 1"),
    "seed": (_seed, "0 to 4294967295"),  # what NumPy's and Keras's generators take
    **dict.fromkeys("hidden_sizes head_sizes filters".split(), (_sizes, "at least 1 each")),
    "reward_scale": (_positive, "greater than 0"),
    "burn_in": (_not_negative, "0 or more"),
    **dict.fromkeys(
        "noise_std noise_theta smoothing_std smoothing_clip".split(), (_not_negative, "0 or more")
    ),
    "noise_dt": (_positive, "greater than 0"),
    "huber_kappa": (_not_negative, "0 or more"),
    "flicker": (_fraction, "between 0 and 1"),
}
