"""Value iteration, policy iteration, a linear program and a long simulation agree."""

from chapter01_fundamentals import dp_policy_iteration, dp_value_iteration
from chapter01_fundamentals.dp_policy_iteration import evaluate, improve, q_values, random_policy
from chapter01_fundamentals.dp_value_iteration import greedy, sweep
from common.environments import make_env
from common.environments.tabular import Model, exact_return, tabular_model

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog


@st.composite
def models(draw) -> Model:
    """Random finite MDPs: sparse or dense, some transitions end the episode, rewards may tie."""
    states, actions = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    concentration = draw(st.sampled_from([0.05, 0.5, 5.0]))
    transition = rng.dirichlet(np.full(states + 1, concentration), (states, actions))[..., :states]
    if draw(st.booleans()):  # an episode that never ends
        transition /= transition.sum(axis=2, keepdims=True) + 1e-300
    reward = rng.normal(size=(states, actions)).round(draw(st.integers(0, 3)))
    return Model(transition, reward, rng.dirichlet(np.ones(states)))


gammas = st.sampled_from([0.0, 0.3, 0.9, 0.99])
evaluations = st.sampled_from(["sweeps", "solve"])


def by_value_iteration(model: Model, gamma: float, theta: float = 1e-10) -> np.ndarray:
    V = np.zeros(len(model.start))
    while True:
        new = sweep(V, model, gamma)
        if np.abs(new - V).max() <= theta * (1.0 - gamma):
            return new
        V = new


def by_policy_iteration(
    model: Model, gamma: float, evaluation: str, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Policies [K, S] and their values [K, S], the last of which nothing improves."""
    config = dp_policy_iteration.Config(gamma=gamma, evaluation=evaluation, seed=seed)
    policy, V = random_policy(model, config), np.zeros(len(model.start))
    policies, values = [], []
    for _ in range(config.max_improvements):
        V, _ = evaluate(policy, V, model, config)
        policies.append(policy)
        values.append(V)
        policy = improve(policy, q_values(V, model, gamma), config.theta)
        if np.array_equal(policy, policies[-1]):
            return np.array(policies), np.array(values)
    raise AssertionError("the policy keeps changing")


def by_linear_program(model: Model, gamma: float) -> np.ndarray:
    """The smallest V with V(s) >= r(s, a) + γ Σ_s' P(s'|s, a) V(s') for all s and a."""
    states, actions = model.reward.shape
    left = np.repeat(np.eye(states), actions, axis=0)  # [S A, S]
    left -= gamma * model.transition.reshape(-1, states)
    found = linprog(np.ones(states), A_ub=-left, b_ub=-model.reward.ravel(), bounds=(None, None))
    assert found.success
    return found.x


# --- Random MDPs ------------------------------------------------------------------------------


@given(models(), gammas, evaluations)
@settings(max_examples=60, deadline=None)
def test_three_ways_to_the_optimal_values(model, gamma, evaluation):
    swept = by_value_iteration(model, gamma)
    policies, values = by_policy_iteration(model, gamma, evaluation)
    program = by_linear_program(model, gamma)
    np.testing.assert_allclose(values[-1], swept, atol=1e-6)
    np.testing.assert_allclose(program, swept, atol=1e-6)
    # Both policies are worth as much as that, though ties may be broken differently.
    config = dp_policy_iteration.Config(gamma=gamma, evaluation="solve")
    for policy in (policies[-1], greedy(q_values(swept, model, gamma), model)):
        worth, _ = evaluate(policy, swept, model, config)
        np.testing.assert_allclose(worth, swept, atol=1e-7 / (1.0 - gamma))


@given(models(), gammas, evaluations, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_improvement_improves(model, gamma, evaluation, seed):
    policies, values = by_policy_iteration(model, gamma, evaluation, seed)
    gains = np.diff(values, axis=0)  # [K - 1, S]
    noise = 1e-12 * (1 + np.abs(values).max()) if evaluation == "solve" else 2e-10
    # No state ever loses, some state wins each time, and so no policy comes twice.
    assert (gains >= -noise).all()
    assert (gains.max(axis=1) > 0.0).all()
    assert len(np.unique(policies, axis=0)) == len(policies)
    # Where the action has changed, the gain is at least what the change promised.
    for k, gain in enumerate(gains):
        Q = q_values(values[k], model, gamma)
        promised = Q[np.arange(len(Q)), policies[k + 1]] - values[k]
        assert (gain >= promised - 2.0 * noise).all()


# Here one sweep changes V by a millionth of the change before it, and later ones by more again.
MISLEADING = Model(
    np.array(
        [
            [[0.028, 1.5e-5], [5.8e-7, 0.99993], [0.99933, 1.3e-6], [0.964, 0.014]],
            [[0.99984, 4e-11], [2.7e-6, 1e-18], [9e-5, 1e-22], [1.7e-8, 0.99999]],
        ]
    ),
    np.array([[-1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 2.0, 0.0]]),
    np.array([0.13, 0.87]),
)


@given(models(), st.integers(0, 1000))
@example(MISLEADING, 0)
@settings(max_examples=40, deadline=None)
def test_gamma_one_where_every_policy_ends(model, seed):
    # At least one step in ten ends the episode: values exist without discounting, too.
    model = model._replace(transition=0.9 * model.transition)
    for evaluation in ("sweeps", "solve"):
        _, values = by_policy_iteration(model, 1.0, evaluation, seed)
        np.testing.assert_allclose(values[-1], by_linear_program(model, 1.0), atol=1e-6)
    V = np.zeros(len(model.start))
    for _ in range(300):
        V = sweep(V, model, 1.0)
    np.testing.assert_allclose(values[-1], V, atol=1e-6)


# --- Simulation -------------------------------------------------------------------------------


def test_a_long_simulation_agrees():
    rng = np.random.default_rng(20)
    transition = rng.dirichlet(np.full(6, 0.5), (5, 3))[..., :5]
    model = Model(transition, rng.normal(size=(5, 3)), np.full(5, 0.2))
    gamma, episodes = 0.9, 40_000
    policies, values = by_policy_iteration(model, gamma, "solve")
    for policy, V in zip(policies[[0, -1]], values[[0, -1]], strict=True):
        # All episodes at once; state 5 is the end.
        probabilities = model.transition[np.arange(5), policy]
        probabilities = np.column_stack([probabilities, 1.0 - probabilities.sum(axis=1)])
        cumulative = np.vstack([probabilities.cumsum(axis=1), np.ones(6)])
        rewards = np.append(model.reward[np.arange(5), policy], 0.0)
        cumulative[-1, :-1] = 0.0
        state = rng.choice(5, size=episodes, p=model.start)
        returns, discount = np.zeros(episodes), 1.0
        while discount > 1e-9:
            returns += discount * rewards[state]
            discount *= gamma
            state = (cumulative[state] <= rng.random((episodes, 1))).sum(axis=1)
        error = returns.std() / np.sqrt(episodes)
        assert 0.001 < error < 0.02
        assert returns.mean() == pytest.approx(model.start @ V, abs=4 * error)
    assert values[-1].min() > values[0].min()


# --- FrozenLake, CliffWalking, Taxi ------------------------------------------------------------


def model_of(env_id: str) -> Model:
    return tabular_model(make_env(env_id), env_id)


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1"])
@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_agreement_on_grid_worlds(env_id, gamma):
    model = model_of(env_id)
    swept, program = by_value_iteration(model, gamma), by_linear_program(model, gamma)
    for evaluation in ("sweeps", "solve"):
        _, values = by_policy_iteration(model, gamma, evaluation)
        np.testing.assert_allclose(values[-1], swept, atol=1e-8)
    np.testing.assert_allclose(program, swept, atol=1e-6)


def test_agreement_on_taxi():
    model = model_of("Taxi-v4")
    _, values = by_policy_iteration(model, 0.99, "solve")
    np.testing.assert_allclose(values[-1], by_value_iteration(model, 0.99), atol=1e-8)


def test_scripts_agree(tmp_path):
    results = [
        script.train(script.Config(theta=1e-9, run_dir=str(tmp_path / script.__name__)))
        for script in (dp_value_iteration, dp_policy_iteration)
    ]
    first, second = (dict(np.load(result.run_dir / "tables.npz")) for result in results)
    np.testing.assert_allclose(first["V"], second["V"], atol=1e-8)
    np.testing.assert_allclose(first["Q"], second["Q"], atol=1e-8)
    assert results[0].facts["exact_return"] == pytest.approx(results[1].facts["exact_return"])
    assert results[0].total_timesteps > 50 * results[1].total_timesteps  # sweeps, improvements


@pytest.mark.parametrize(
    ("env_id", "limit", "successes"),
    [
        ("FrozenLake-v1", 100, {0.9: 0.729766, 0.99: 0.740165}),
        ("FrozenLake8x8-v1", 200, {0.9: 0.738576, 0.99: 0.862955, 0.999: 0.885654}),
    ],
)
def test_a_time_limit_makes_the_best_policy_depend_on_time(env_id, limit, successes):
    """γ < 1 is a stand-in for hurry; with a real deadline the best action changes as it nears."""
    model = model_of(env_id)
    for gamma, success in successes.items():
        for seed in range(2):  # the way there does not matter
            policies, _ = by_policy_iteration(model, gamma, "solve", seed)
            assert exact_return(policies[-1], model, limit) == pytest.approx(success, abs=5e-7)

    # Backward induction: V with no step to go is 0, then with one, two, ... steps to go.
    V, plan = np.zeros(len(model.start)), []
    for _ in range(limit):
        Q = q_values(V, model, 1.0)
        plan.insert(0, Q.argmax(axis=1))
        V = Q.max(axis=1)
    best = {"FrozenLake-v1": 0.744190, "FrozenLake8x8-v1": 0.913220}[env_id]
    assert model.start @ V == pytest.approx(best, abs=5e-7)
    assert best > max(successes.values())

    # Following the plan from the first step on reaches the goal just as often.
    states, here, reached = np.arange(len(V)), model.start, 0.0
    for policy in plan:
        reached += here @ model.reward[states, policy]
        here = here @ model.transition[states, policy]
    assert reached == pytest.approx(best, abs=5e-7)
    assert len(np.unique(plan, axis=0)) > 5  # it does depend on time


def test_random_policy_on_the_lake():
    model = model_of("FrozenLake-v1")
    uniform = np.full(model.reward.shape, 0.25)
    assert exact_return(uniform, model, 100) == pytest.approx(0.0139, abs=5e-5)
