"""Generative adversarial network (GAN): learns to draw from eight Gaussians on a circle.

Book: chapter 7, Deep Learning Foundations, "Generative adversarial networks"

Idea
----
A generator G turns noise z into points; a discriminator D says how likely a point is real. D
learns to tell real points from generated ones, G learns to be taken for real: a game of two. If
both could represent anything, its only equilibrium would be that G's points have the distribution
of the real ones and D says 1/2 everywhere. On the way there nothing makes G serve every mode of the
data; one that pleases D with a few of them has collapsed. In two dimensions it can be seen and
counted.

Equations
---------
D(x) = σ(u(x)) with the logit u; batches of B points; softplus(u) = log(1 + exp u).

    real points: x = R (cos 2πk/8, sin 2πk/8) + noise N(0, s² I), k = 0 ... 7 at random    (1)
    L_D = -mean log D(x) - mean log(1 - D(G(z))) = mean softplus(-u(x))
                                                 + mean softplus(u(G(z))),  z ~ N(0, I)    (2)
    L_G = -mean log D(G(z)) = mean softplus(-u(G(z)))                                      (3)
    in equilibrium D = 1/2, L_D = 2 log 2 and L_G = log 2                                  (4)
    a mode is covered if at least a quarter of its fair share, 1/32 of all samples, lies
    within 3 s of its centre (of real points 98.9% lie that near to theirs)                (5)

Differs from the book
---------------------
1. The book describes GANs without code; data of two dimensions show whether every mode is learned.
2. G maximizes log D(G(z)) instead of minimizing log(1 - D(G(z))): the same equilibrium, but a
   gradient that does not vanish where D is sure that a point is generated.
3. Adam's β₁ is 0.5, not the usual 0.9: gradients that are remembered for long come from a
   discriminator that has moved on, and drive G past the modes (see Expected).

How to run
----------
    python chapter01_fundamentals/nn_gan.py
    python chapter01_fundamentals/nn_gan.py --beta1 0.9
    python chapter01_fundamentals/nn_gan.py --mode-std 0.02

Expected
--------
Measured: 8 of 8 modes; 94%, 91%, 93% of samples near one, seeds 0, 1, 2; 12 s

With `--beta1 0.9` seeds 0, 1, 2 cover 8, 1 and 7 modes: the second has collapsed, and its one cloud
wanders from mode to mode as D learns to reject it. With `--mode-std 0.02`: 4, 5 and 6.

Paper
-----
Goodfellow et al., "Generative adversarial nets", Advances in Neural Information Processing
Systems 27, 2014.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common import plots
from common.cli import command, parse
from common.compiled import compiled
from common.config import RunConfig, check_config
from common.errors import UserError
from common.evaluation import report_measure
from common.metrics import read_metrics
from common.run import Result, Run

import keras
import numpy as np
import tensorflow as tf

TARGET = 7  # modes covered that count as solved
MODES, RADIUS = 8, 2.0  # R
ANGLES = 2.0 * np.pi * np.arange(MODES) / MODES
CENTRES = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # [8, 2]
SNAPSHOTS = (0.0, 0.02, 0.1, 0.25, 0.5, 1.0)  # parts of the run after which samples are kept
AXIS = np.linspace(-3.0, 3.0, 61, dtype=np.float32)  # of the pictures
GRID = np.stack(np.meshgrid(AXIS, AXIS), axis=-1).reshape(-1, 2)  # [61 * 61, 2]


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters."""

    seed: int = 0  # of everything random
    num_steps: int = 5_000  # gradient steps of each network
    steps_per_call: int = 50  # of them in one call into TensorFlow; divides num_steps
    batch_size: int = 128  # B, real and generated points per gradient step
    learning_rate: float = 1e-3  # α, step size of Adam, both networks
    beta1: float = 0.5  # β₁ of Adam: how slowly its mean gradient forgets
    hidden_units: int = 128  # units of each of the two hidden layers, both networks
    latent_size: int = 16  # numbers in z
    mode_std: float = 0.1  # s, standard deviation of a mode; the modes lie on a circle of radius 2


class Batches(NamedTuple):
    """What one call into TensorFlow needs, K gradient steps of each network."""

    x: np.ndarray  # real points, [K, B, 2]
    z_d: np.ndarray  # noise for the discriminator's step, [K, B, Z]
    z_g: np.ndarray  # noise for the generator's step, [K, B, Z]


def build_network(inputs: int, hidden_units: int, outputs: int) -> keras.Model:
    """Two hidden layers of ReLUs: G from Z to 2, D from 2 to the logit u."""
    layers = [keras.layers.Dense(hidden_units, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((inputs,)), *layers, keras.layers.Dense(outputs)])


def real_points(shape: tuple[int, ...], mode_std: float, rng: np.random.Generator) -> np.ndarray:
    """Points of the mixture, [*shape, 2]."""
    centres = CENTRES[rng.integers(MODES, size=shape)]
    return (centres + rng.normal(0.0, mode_std, (*shape, 2))).astype(np.float32)  # (1)


def draw_batches(config: Config, rng: np.random.Generator) -> Batches:
    """Fresh real points and fresh noise."""
    shape = config.steps_per_call, config.batch_size
    noise = rng.standard_normal((2, *shape, config.latent_size), np.float32)
    return Batches(real_points(shape, config.mode_std, rng), *noise)


def build_train_step(
    generator: keras.Model,
    discriminator: keras.Model,
    g_optimizer: keras.optimizers.Optimizer,
    d_optimizer: keras.optimizers.Optimizer,
) -> Callable[[Batches], dict[str, tf.Tensor]]:
    """One gradient step of each network; returns metrics."""
    g_variables, d_variables = generator.trainable_variables, discriminator.trainable_variables

    def train_step(batch: Batches) -> dict[str, tf.Tensor]:
        generated = generator(batch.z_d)  # [B, 2]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in d_variables])
            u_real = discriminator(batch.x)[:, 0]  # [B]
            u_generated = discriminator(generated)[:, 0]  # [B]
            d_loss = tf.reduce_mean(tf.nn.softplus(-u_real))
            d_loss += tf.reduce_mean(tf.nn.softplus(u_generated))  # (2)
        gradients = tape.gradient(d_loss, [variable.value for variable in d_variables])
        d_optimizer.apply(gradients, d_variables)

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in g_variables])
            u_generated = discriminator(generator(batch.z_g))[:, 0]  # [B]
            g_loss = tf.reduce_mean(tf.nn.softplus(-u_generated))  # (3)
        gradients = tape.gradient(g_loss, [variable.value for variable in g_variables])
        g_optimizer.apply(gradients, g_variables)
        return {"train/discriminator_loss": d_loss, "train/generator_loss": g_loss}

    return train_step


def share_near_modes(points: np.ndarray, mode_std: float) -> np.ndarray:
    """Which part of all points lies within 3 s of each mode, [8]; the rest lies nowhere near."""
    distance = np.linalg.norm(points[:, None] - CENTRES, axis=2)  # [N, 8]
    mode, near = distance.argmin(axis=1), distance.min(axis=1) <= 3.0 * mode_std
    return np.bincount(mode[near], minlength=MODES) / len(points)


def modes_covered(share: np.ndarray) -> int:
    """How many modes have a quarter of their fair share."""
    return int(np.sum(share >= 1.0 / MODES / 4.0))  # (5)


def train(config: Config) -> Result:
    """Trains both networks; see `Config` for everything that can be set."""
    check_config(config)
    if config.num_steps % config.steps_per_call:
        raise UserError(
            f"--steps-per-call {config.steps_per_call}: must divide --num-steps "
            f"({config.num_steps}); 1 always does"
        )
    run = Run(config, __file__)
    keras.utils.set_random_seed(config.seed)
    generator = build_network(config.latent_size, config.hidden_units, 2)
    discriminator = build_network(2, config.hidden_units, 1)
    g_optimizer = keras.optimizers.Adam(config.learning_rate, config.beta1)
    d_optimizer = keras.optimizers.Adam(config.learning_rate, config.beta1)
    g_optimizer.build(generator.trainable_variables)
    d_optimizer.build(discriminator.trainable_variables)
    rng, fresh = (np.random.default_rng([config.seed, k]) for k in (1, 2))
    z = fresh.standard_normal((10_000, config.latent_size), np.float32)  # never trained on
    samples = np.zeros((len(SNAPSHOTS), 1_000, 2), np.float32)
    fields = np.zeros((len(SNAPSHOTS), len(GRID)), np.float32)  # D over the plane
    run.track(generator=generator, discriminator=discriminator, rng=rng)
    run.track(g_optimizer=g_optimizer, d_optimizer=d_optimizer, samples=samples, fields=fields)

    train_step = build_train_step(generator, discriminator, g_optimizer, d_optimizer)
    train_steps = compiled(train_step, loop=True)
    generate = compiled(lambda noise: generator(noise))
    probability = compiled(lambda points: tf.sigmoid(discriminator(points)[:, 0]))

    def keep_snapshot(number: int) -> None:
        samples[number] = generate(z[: samples.shape[1]])
        fields[number] = probability(GRID)

    for step in run.steps(config.num_steps, config.steps_per_call):
        for number in due_snapshots(config, step):
            keep_snapshot(number)
        run.log(train_steps(draw_batches(config, rng)))
        share = share_near_modes(generate(z[:2_000]), config.mode_std)
        run.log({"train/modes_covered": modes_covered(share), "train/share_near": share.sum()})

    keep_snapshot(-1)
    share = share_near_modes(generate(z), config.mode_std)
    facts: dict[str, float | None] = {
        "modes_covered": modes_covered(share),
        "share_near_modes": float(share.sum()),
        "smallest_share_of_a_mode": float(share.min()),
        "largest_share_of_a_mode": float(share.max()),
    }
    result = run.finish(facts=facts)
    draw_learning(result.run_dir, config)
    draw_samples(result.run_dir, config, samples, fields)
    return result


def due_snapshots(config: Config, step: int) -> list[int]:
    """Numbers of the snapshots that are due before the gradient steps from `step` on."""
    due = [int(part * config.num_steps) for part in SNAPSHOTS[:-1]]
    return [n for n, at in enumerate(due) if step <= at < step + config.steps_per_call]


def draw_learning(run_dir: Path, config: Config) -> None:
    """`learning_curve.png`: losses with their values in equilibrium, and modes covered."""
    metrics = read_metrics(run_dir)
    with plots.figure(run_dir / "learning_curve.png", columns=2, size=(11.0, 4.2)) as [left, right]:
        for name, equilibrium in (("discriminator", 2.0 * np.log(2.0)), ("generator", np.log(2.0))):
            [line] = left.plot(metrics["step"], metrics[f"train/{name}_loss"], label=name)
            left.axhline(equilibrium, color=line.get_color(), linestyle=":", linewidth=1)  # (4)
        left.set(xlabel="gradient steps of each network", ylabel="loss [nats]", ylim=(0, None))
        left.set_title(f"GAN on eight Gaussians, seed {config.seed} (dotted: equilibrium)")
        left.legend()
        right.plot(metrics["step"], metrics["train/modes_covered"] / MODES, label="modes covered")
        right.plot(metrics["step"], metrics["train/share_near"], label="samples within 3 s of one")
        right.set(xlabel="gradient steps of each network", ylabel="share", ylim=(0, 1.05))
        right.legend(loc="lower right")


def draw_samples(run_dir: Path, config: Config, samples: np.ndarray, fields: np.ndarray) -> None:
    """`samples.png`: a thousand samples over training, on what the discriminator thinks."""
    turn, columns = np.linspace(0.0, 2.0 * np.pi, 50), len(SNAPSHOTS)
    path = run_dir / "samples.png"
    with plots.figure(path, columns=columns, size=(2.6 * columns, 3.3)) as panels:
        for number, panel in enumerate(panels):
            field = fields[number].reshape(len(AXIS), len(AXIS))
            panel.pcolormesh(AXIS, AXIS, field, cmap="RdBu_r", vmin=0, vmax=1, alpha=0.5)
            panel.plot(*samples[number].T, ".", color="black", markersize=1.5)
            for x, y in CENTRES:
                radius = 3.0 * config.mode_std
                outline = x + radius * np.cos(turn), y + radius * np.sin(turn)
                panel.plot(*outline, "-", color="black", linewidth=0.7)
            panel.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
            panel.set_title(f"step {SNAPSHOTS[number] * config.num_steps:,.0f}")
            panel.grid(False)
        panels[0].figure.suptitle(
            f"1,000 samples and the modes (circles: 3 s); D says real where red, generated where "
            f"blue; seed {config.seed}"
        )


@command
def main() -> None:
    """Trains and reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report_measure(result, config, "modes covered", result.facts["modes_covered"], TARGET)


if __name__ == "__main__":
    main()
