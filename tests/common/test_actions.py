"""Actions between [-1, 1] and an environment's bounds; action spaces that are refused."""

from common.actions import require_bounded_box, require_discrete, rescale_action
from common.errors import UserError

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete


def test_rescale_action():
    space = Box(np.float32([-1, 0, -np.inf, 0]), np.float32([3, 0.5, np.inf, np.inf]))
    action = np.array([[-1.0, -1, -7, -7], [0, 0, 0, 0], [1, 1, 7, 7], [5, -5, 1e6, -1e6]])
    rescaled = rescale_action(action, space)
    expected = [[-1, 0, -7, -7], [1, 0.25, 0, 0], [3, 0.5, 7, 7], [3, 0, 1e6, -1e6]]
    np.testing.assert_array_equal(rescaled, np.float32(expected), strict=True)
    np.testing.assert_array_equal(rescale_action(action[2], space), np.float32(expected[2]))
    assert rescale_action(np.zeros(1), Box(-2.0, 2.0, (1,), np.float64)).dtype == np.float64
    integers = Box(-100, 100, (5,), np.int8)  # high - low is no int8
    rescaled = rescale_action(np.array([-1.0, -0.5, 0.0, 0.5, 0.9]), integers)
    np.testing.assert_array_equal(rescaled, np.int8([-100, -50, 0, 50, 90]), strict=True)


def test_require_discrete():
    assert require_discrete(Discrete(4), "CartPole-v1", "ppo_clip.py") == 4
    with pytest.raises(UserError, match=r"--env-id Pendulum-v1.*continuous.*use ppo_clip"):
        require_discrete(Box(-2.0, 2.0, (1,)), "Pendulum-v1", "ppo_clip.py")
    with pytest.raises(UserError, match=r"--env-id Odd-v0.*start at 1"):
        require_discrete(Discrete(4, start=1), "Odd-v0", "ppo_clip.py")


def test_a_box_with_finite_bounds_is_required():
    space = Box(np.float32([-1, 0]), np.float32([3, 0.25]))
    assert require_bounded_box(space, "Some-v0", "ppo_clip.py") is space
    for other, message in (
        (Discrete(2), r"--env-id Some-v0: actions are discrete .*; use dqn.py or ppo_clip.py"),
        (Box(-np.inf, 1.0, (1,)), r"no finite bounds .*; use ppo_clip.py"),
        (Box(np.float32([-1, 2]), np.float32([1, 2])), "has no width"),
    ):
        with pytest.raises(UserError, match=message):
            require_bounded_box(other, "Some-v0", "ppo_clip.py")
