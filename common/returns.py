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


class TrueReturns:
    """What the states that an agent visits were truly worth: their discounted returns.

    The mean of Q(s, a) beside it shows whether an agent overestimates. An episode that a time limit
    cuts has lost its end: of such an episode only those states count that are so far from the cut
    that less than a hundredth of what follows is missing.
    """

    MISSING = 0.01  # part of a constant reward's discounted sum that a cut may take away

    def __init__(self, num_envs: int, gamma: float) -> None:
        """Begins with no episode.

        Args:
            num_envs: environments that step together.
            gamma: discount factor γ.
        """
        self.gamma = gamma
        self.horizon = int(np.ceil(np.log(self.MISSING) / np.log(gamma))) if 0 < gamma < 1 else 0
        if gamma == 1.0:
            self.horizon = np.iinfo(np.int64).max  # nothing of what a cut takes away fades
        self._rewards: list[np.ndarray] = []
        self._start = np.zeros(num_envs, np.int64)  # where each episode begins in the list
        self._steps = 0  # steps before the list begins

    def add(
        self, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> tuple[float, int]:
        """Takes one step of each of N environments.

        Args:
            reward: [N], as the learner sees it.
            terminated: [N].
            truncated: [N].

        Returns:
            The mean discounted return of the states of the episodes that ended here, and the number
            of these states; (0.0, 0) if there are none.
        """
        self._rewards.append(np.array(reward, np.float64))
        done = np.logical_or(terminated, truncated)
        if not done.any():
            return 0.0, 0
        total, states = 0.0, 0
        for i in np.flatnonzero(done):
            rewards = np.array([step[i] for step in self._rewards[self._start[i] - self._steps :]])
            returns = discounted_returns(rewards, self.gamma)
            counted = len(returns) if terminated[i] else max(len(returns) - self.horizon, 0)
            total += float(returns[:counted].sum(dtype=np.float64))
            states += counted
        self._start[done] = self._steps + len(self._rewards)
        forget = int(self._start.min()) - self._steps
        del self._rewards[:forget]
        self._steps += forget
        return (total / states if states else 0.0), states
