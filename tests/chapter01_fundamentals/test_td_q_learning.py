"""Q-learning and SARSA on the cliff, against values from the model; Q-learning's own values."""

from chapter01_fundamentals import td_q_learning, td_sarsa
from common.environments import make_env
from common.environments.tabular import Model, exact_return, tabular_model
from common.metrics import read_metrics

import numpy as np
import pytest

EPSILON = 0.1
EDGE, SAFE = range(25, 35), range(13, 23)  # cells beside the cliff, and one row further away


@pytest.fixture(scope="module")
def cliff() -> Model:
    return tabular_model(make_env("CliffWalking-v1"), "CliffWalking-v1")


def best_q(model: Model, epsilon: float, gamma: float = 1.0) -> np.ndarray:
    """Q of the best policy among those that act at random with probability ε."""
    Q = np.zeros_like(model.reward)
    for _ in range(3_000):
        V = (1.0 - epsilon) * Q.max(axis=1) + epsilon * Q.mean(axis=1)
        Q = model.reward + gamma * model.transition @ V
    return Q


def exploring(policy: np.ndarray) -> np.ndarray:
    return EPSILON / 4 + (1.0 - EPSILON) * np.eye(4)[policy]


def path(policy: np.ndarray, model: Model) -> list[int]:
    """Cells on the way from the start; the environment is not random."""
    cells = [int(model.start.argmax())]
    while model.transition[cells[-1], policy[cells[-1]]].any() and len(cells) < 100:
        cells.append(int(model.transition[cells[-1], policy[cells[-1]]].argmax()))
    return cells


def tables(run_dir) -> dict[str, np.ndarray]:
    with np.load(run_dir / "tables.npz") as stored:
        return dict(stored)


# --- The lesson of the cliff ------------------------------------------------------------------


def test_the_cliff_by_the_model_alone(cliff):
    """The edge is best for those who never slip; for those who do, one row further away is."""
    optimum, soft = best_q(cliff, 0.0), best_q(cliff, EPSILON)
    edge, safe = optimum.argmax(axis=1), soft.argmax(axis=1)
    assert exact_return(edge, cliff) == pytest.approx(-13.0, abs=1e-12)
    assert exact_return(exploring(edge), cliff) == pytest.approx(-45.80, abs=0.005)
    assert exact_return(safe, cliff) == pytest.approx(-15.0, abs=1e-12)
    assert exact_return(exploring(safe), cliff) == pytest.approx(-20.71, abs=0.005)
    assert set(EDGE) <= set(path(edge, cliff))
    assert set(SAFE) <= set(path(safe, cliff))
    # Off the edge two ways back are equally short. Always down instead of right costs this much:
    down_first = 3 - optimum[:, ::-1].argmax(axis=1)
    assert exact_return(down_first, cliff) == pytest.approx(-13.0, abs=1e-12)
    assert exact_return(exploring(down_first), cliff) == pytest.approx(-51.81, abs=0.005)


def test_learned_tables_teach_the_same_lesson(tmp_path, cliff):
    q_learning = td_q_learning.train(
        td_q_learning.Config(run_dir=str(tmp_path / "q"), num_episodes=1_500, alpha=0.2)
    )
    sarsa = td_sarsa.train(td_sarsa.Config(run_dir=str(tmp_path / "s"), num_episodes=3_000))
    edge, safe = tables(tmp_path / "q")["policy"], tables(tmp_path / "s")["policy"]
    # Greedy: Q-learning is better.
    assert q_learning.facts["exact_return"] == pytest.approx(-13.0, abs=1e-12)
    assert sarsa.facts["exact_return"] == pytest.approx(-15.0, abs=1e-12)
    assert set(EDGE) <= set(path(edge, cliff))
    assert set(SAFE) <= set(path(safe, cliff))
    # While it explores: SARSA is.
    assert -54.0 < q_learning.facts["exact_return_exploring"] < -45.80
    assert -23.0 < sarsa.facts["exact_return_exploring"] < -20.70
    online = {}
    for key in ("q", "s"):
        curve = read_metrics(tmp_path / key)["charts/episode_return"]
        online[key] = curve[len(curve) // 2 :].mean()
    assert -60.0 < online["q"] < -40.0
    assert -25.0 < online["s"] < -18.0
    # And the values are those of the policies they speak of: V(start) of either.
    assert tables(tmp_path / "q")["V"][36] == pytest.approx(-13.0, abs=0.01)
    assert tables(tmp_path / "s")["V"][36] == pytest.approx(best_q(cliff, EPSILON)[36].max(), abs=2)


# --- Off-policy -------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1.0, 0.5])
def test_learns_the_optimum_whatever_it_does(tmp_path, epsilon):
    """Taxi would take longer; the lake without slipping has 64 pairs and one optimal Q."""
    flags = {"env_id": "FrozenLake-v1", "slippery": False, "num_episodes": 3_000, "alpha": 1.0}
    config = td_q_learning.Config(
        run_dir=str(tmp_path), start_epsilon=epsilon, end_epsilon=epsilon, gamma=0.9, **flags
    )
    td_q_learning.train(config)
    Q, known = (
        tables(tmp_path)["Q"],
        tabular_model(make_env("FrozenLake-v1", is_slippery=False), ""),
    )
    np.testing.assert_allclose(Q[:15], best_q(known, 0.0, 0.9)[:15], atol=1e-12)
    assert Q[0].max() == pytest.approx(0.9**5, abs=1e-12)
