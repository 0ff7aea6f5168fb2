"""The GAN: what counts as a covered mode, both losses, and that training finds the modes."""

from chapter01_fundamentals import nn_gan as script
from chapter01_fundamentals.nn_gan import (
    CENTRES,
    SNAPSHOTS,
    Batches,
    Config,
    build_network,
    build_train_step,
    draw_batches,
    due_snapshots,
    modes_covered,
    real_points,
    share_near_modes,
)
from common.metrics import read_metrics

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# --- What is counted ---------------------------------------------------------------------------


def test_the_modes_lie_on_a_circle_at_equal_distances():
    np.testing.assert_allclose(np.linalg.norm(CENTRES, axis=1), 2.0)
    sides = np.linalg.norm(CENTRES - np.roll(CENTRES, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides, 4.0 * np.sin(np.pi / 8))
    assert CENTRES.shape == (8, 2)


def test_shares_of_hand_made_samples():
    inside, outside = np.array([0.2999, 0.0]), np.array([0.0, 0.3001])
    points = np.concatenate(
        [
            [CENTRES[0]] * 4,
            [CENTRES[3] + inside] * 3,
            [CENTRES[5] - inside] * 1,
            [CENTRES[6] + outside] * 2,  # 3 s is 0.3
            [[0.0, 0.0]] * 6,  # far from all
        ]
    )
    share = share_near_modes(points, 0.1)
    np.testing.assert_array_equal(share, np.array([4, 0, 0, 3, 0, 1, 0, 0]) / 16)
    assert modes_covered(share) == 3
    assert share_near_modes(points, 0.11)[6] == 2 / 16


@pytest.mark.parametrize(
    ("counts", "covered"),
    [
        ([32] * 8, 8),
        ([256] + [0] * 7, 1),
        ([0] * 8, 0),
        ([8] * 7 + [200], 8),  # exactly a quarter of the fair share, 256 / 8 / 4
        ([7] * 7 + [207], 1),  # one sample less
        ([100, 100, 56, 0, 0, 0, 0, 0], 3),
    ],
)
def test_modes_covered_of_hand_made_samples(counts, covered):
    points = np.repeat(CENTRES, counts, axis=0)
    points = np.concatenate([points, np.zeros((256 - sum(counts), 2))])
    share = share_near_modes(points, 0.1)
    np.testing.assert_array_equal(share, np.array(counts) / 256)
    assert modes_covered(share) == covered


@pytest.mark.parametrize("mode_std", [0.02, 0.1])
def test_real_points_cover_all_modes(mode_std):
    points = real_points((200, 200), mode_std, np.random.default_rng(0)).reshape(-1, 2)
    share = share_near_modes(points, mode_std)
    assert modes_covered(share) == 8
    # In two dimensions 1 - exp(-3²/2) of a Gaussian lies within three standard deviations.
    assert share.sum() == pytest.approx(1.0 - np.exp(-4.5), abs=0.002)
    np.testing.assert_allclose(share, 1 / 8, atol=0.01)
    nearest = CENTRES[np.linalg.norm(points[:, None] - CENTRES, axis=2).argmin(axis=1)]
    assert (points - nearest).std() == pytest.approx(mode_std, rel=0.02)


@given(st.integers(1, 500), st.integers(1, 70))
@settings(max_examples=50, deadline=None)
def test_each_snapshot_but_the_last_is_due_once(num_steps, steps_per_call):
    config = Config(num_steps=num_steps, steps_per_call=steps_per_call)
    due = [n for step in range(0, num_steps, steps_per_call) for n in due_snapshots(config, step)]
    assert due == list(range(len(SNAPSHOTS) - 1))


# --- One step ----------------------------------------------------------------------------------


def networks(g_rate, d_rate):
    keras.utils.set_random_seed(0)
    both = build_network(3, 8, 2), build_network(2, 8, 1)
    optimizers = [keras.optimizers.SGD(rate) for rate in (g_rate, d_rate)]
    for optimizer, network in zip(optimizers, both, strict=True):
        optimizer.build(network.trainable_variables)
    return *both, build_train_step(*both, *optimizers)


def one_batch():
    config = Config(steps_per_call=1, batch_size=7, latent_size=3)
    return Batches(*(array[0] for array in draw_batches(config, np.random.default_rng(1))))


def values(network):
    return [np.asarray(variable).copy() for variable in network.variables]


def same(before, network):
    return all(np.array_equal(a, b) for a, b in zip(before, values(network), strict=True))


def test_losses_are_those_of_the_equations():
    generator, discriminator, train_step = networks(0.0, 0.0)
    batch = one_batch()

    def D(points):
        return 1.0 / (1.0 + np.exp(-np.asarray(discriminator(points), np.float64)[:, 0]))

    real, of_d, of_g = D(batch.x), D(generator(batch.z_d)), D(generator(batch.z_g))
    metrics = train_step(batch)
    d_loss = -np.log(real).mean() - np.log(1.0 - of_d).mean()
    assert float(metrics["train/discriminator_loss"]) == pytest.approx(d_loss, abs=1e-6)
    assert float(metrics["train/generator_loss"]) == pytest.approx(-np.log(of_g).mean(), abs=1e-6)


def test_losses_in_equilibrium():
    generator, discriminator, train_step = networks(0.1, 0.1)
    for variable in discriminator.variables:
        variable.assign(np.zeros(variable.shape))  # says 1/2 everywhere
    before = values(generator)
    metrics = train_step(one_batch())
    assert float(metrics["train/discriminator_loss"]) == pytest.approx(2 * np.log(2), abs=1e-6)
    assert float(metrics["train/generator_loss"]) == pytest.approx(np.log(2), abs=1e-6)
    assert same(before, generator)  # no gradient where all points look equally real


def test_each_step_moves_its_own_network_and_lowers_its_own_loss():
    batch = one_batch()
    for g_rate, d_rate, name in ((0.0, 0.02, "discriminator"), (0.02, 0.0, "generator")):
        generator, discriminator, train_step = networks(g_rate, d_rate)
        before = values(generator), values(discriminator)
        first = train_step(batch)
        moved = not same(before[0], generator), not same(before[1], discriminator)
        assert moved == (name == "generator", name == "discriminator")
        second = train_step(batch)
        assert float(second[f"train/{name}_loss"]) < float(first[f"train/{name}_loss"])


# --- Training ----------------------------------------------------------------------------------


def test_modes_are_found(tmp_path):
    config = Config(num_steps=1_500, hidden_units=64, run_dir=str(tmp_path))
    result = script.train(config)
    share = read_metrics(tmp_path)["train/share_near"]
    assert share[0] < 0.2  # after the first 50 steps
    assert result.facts["modes_covered"] >= 4
    assert result.facts["share_near_modes"] > 0.5
    assert result.facts["smallest_share_of_a_mode"] <= 1 / 8
    for name in ("learning_curve.png", "samples.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.parametrize(
    "flag", ["--beta1 1.0", "--mode-std 0.0", "--steps-per-call 0", "--steps-per-call 30"]
)
def test_bad_flags(tmp_path, command_line, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    status, out, err = command_line("nn_gan", *flag.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {flag}: must ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target(tmp_path, seed):
    facts = script.train(Config(seed=seed, run_dir=str(tmp_path))).facts
    assert facts["modes_covered"] >= script.TARGET
