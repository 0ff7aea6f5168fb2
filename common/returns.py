"""Returns and advantages of trajectories, as five scripts need them word for word."""

from __future__ import annotations

import numpy as np


def discounted_returns(reward: np.ndarray, gamma: float, bootstrap: float = 0.0) -> np.ndarray:
    """Reward-to-go of one trajectory: G_t = r_t + γ G_{t+1}, with G_T = `bootstrap`.

    Args:
        reward: rewards of one trajectory, [T].
        gamma: discount factor.
        bootstrap: value of the state after the last reward; 0 if the episode terminated there.

    Returns:
        Reward-to-go, [T], float32.
    """
    reward_to_go = np.empty(len(reward), np.float32)
    running = bootstrap
    for t in reversed(range(len(reward))):
        running = reward[t] + gamma * running
        reward_to_go[t] = running
    return reward_to_go


def gae(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Generalized advantage estimation (Schulman et al. 2016, equations 11 to 16).

        δ_t = r_t + γ (1 - terminated_t) V(s_{t+1}) - V(s_t)
        A_t = δ_t + γ λ (1 - done_t) A_{t+1}

    A time limit cuts the sum over λ, as every episode's end does, but not the bootstrap: the value
    of the true successor, not of the state the next episode began in, belongs in `next_value`.

    Args:
        reward: r_t, [T] or [T, N] for N environments.
        value: V(s_t), same shape.
        next_value: V of the true successor of s_t, same shape.
        terminated: whether the MDP ended at t, same shape.
        truncated: whether the episode was cut at t, same shape.
        gamma: discount factor γ.
        gae_lambda: λ, 0 for one-step advantages, 1 for Monte-Carlo ones.

    Returns:
        Advantages A_t, same shape, float32.
    """
    goes_on = 1.0 - np.asarray(terminated, np.float32)
    same_episode = 1.0 - np.logical_or(terminated, truncated).astype(np.float32)
    td_error = (reward + gamma * goes_on * next_value - value).astype(np.float32)
    advantage = np.zeros_like(td_error)
    running = np.zeros_like(td_error[0])
    for t in reversed(range(len(td_error))):
        running = td_error[t] + gamma * gae_lambda * same_episode[t] * running
        advantage[t] = running
    return advantage
