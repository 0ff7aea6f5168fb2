"""TensorFlow basics: tensors, variables, gradients, graphs, and what each way of running costs.

Book: chapter 8, A Primer on TensorFlow, "Introducing eager execution" and "Introducing TensorBoard"

Idea
----
TensorFlow runs a line when Python reaches it (eager), or records a function once as a graph and
runs that (`tf.function`), or compiles the graph into one program for this processor (XLA). The
results are the same, the times are not: a call from Python costs tens of microseconds, so many
small operations are slow one by one, and a chain of operations on a large array is slow if every
one of them sends the array through memory. The script shows each thing in a few lines, measures the
three ways on this machine, fits a line with a gradient tape and writes events for TensorBoard.

Equations
---------
    f(x) = x³:  f'(2) = 3·2² = 12,  f''(2) = 6·2 = 12, by a tape within a tape             (1)
    ŷ = w x + b                                                                            (2)
    L(w, b) = mean (y - ŷ)²                                                                (3)
    w <- w - α ∂L/∂w,  b <- b - α ∂L/∂b                                                    (4)
    the minimum of (3), exactly: w = cov(x, y) / var(x),  b = mean(y) - w mean(x)          (5)

Differs from the book
---------------------
1. The book starts with TensorFlow 1. Its graphs are what `tf.function` records, its placeholders
   the function's arguments, `session.run` a call; variables start when they are made.
2. Times are measured, on three kinds of work: the first call, which records or compiles, is shown
   apart, and the others are medians.

How to run
----------
    python chapter01_fundamentals/tf_basics.py
    python chapter01_fundamentals/tf_basics.py --repeats 200
    tensorboard --logdir runs/tf_basics

Expected
--------
Measured: a small gradient 1.7 ms eager, 0.25 ms as tf.function, 0.33 ms with XLA; 8 s

Medians of four runs on two CPU cores that also had other work. In the same order: 20 operations on
a million numbers 5.9, 2.2, 0.46 ms; one 512x512 matrix product 2.6, 2.5, 2.7 ms, where there is
nothing to save. Recording takes 30 to 110 ms, compiling 13 to 210 ms. Gradient descent ends 1e-7
from the exact line.

Paper
-----
Abadi et al., "TensorFlow: a system for large-scale machine learning", OSDI 2016; Agrawal et al.,
"TensorFlow Eager: a multi-stage, Python-embedded DSL for machine learning", MLSys 2019.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import common.quiet  # noqa: F401
from common import plots
from common.cli import command, parse
from common.config import RunConfig, check_config
from common.errors import UserError
from common.evaluation import report_measure
from common.metrics import read_metrics
from common.run import Result, Run

import numpy as np
import tensorflow as tf

TARGET = 1e-4  # distance of w and b from (5) that counts as solved
MODES = {  # ways of running the same Python function
    "eager": lambda function: function,
    "tf.function": tf.function,
    "XLA": lambda function: tf.function(function, jit_compile=True),
}
Timings = dict[str, dict[str, tuple[float, float]]]  # work -> mode -> first call, median [us]


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters."""

    seed: int = 0  # of the points through which the line is fitted
    num_steps: int = 100  # gradient steps
    num_samples: int = 100  # points
    learning_rate: float = 0.3  # α, step size of gradient descent
    repeats: int = 50  # calls of which the median time is taken


class Line(tf.Module):
    """Two variables; `tf.Module` finds them for checkpoints."""

    def __init__(self) -> None:
        """Both start at 0."""
        super().__init__()
        self.w, self.b = tf.Variable(0.0, name="w"), tf.Variable(0.0, name="b")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """ŷ, [N]."""
        with tf.name_scope("line"):  # a box in TensorBoard's graph
            return self.w * x + self.b  # (2)


def show_tensors() -> None:
    """Tensors and variables."""
    a, b = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([10.0, 20.0])
    counter = tf.Variable(5)
    counter.assign_add(2)
    show("a", a)
    show("a + b: b is added to every row", a + b)
    show("a * a: element by element", a * a)
    show("a @ a: matrix product", a @ a)
    show("tf.reduce_mean(a, axis=0)", tf.reduce_mean(a, axis=0))
    show("np.sqrt((a * a).numpy()): as a NumPy array", np.sqrt((a * a).numpy()))
    show("counter = tf.Variable(5); counter.assign_add(2)", counter)


def cube_derivatives(at: float) -> tuple[tf.Tensor, tf.Tensor]:
    """First and second derivative of x³."""
    x = tf.Variable(at)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            y = x**3
        first = inner.gradient(y, x)  # (1)
    return first, outer.gradient(first, x)  # (1)


def count_traces() -> dict[str, int]:
    """How often a `tf.function` is recorded in three calls, by what it is called with."""
    arguments = {
        "tensors of one shape": [tf.zeros(4)] * 3,
        "tensors of three shapes": [tf.zeros(1), tf.zeros(2), tf.zeros(3)],
        "Python numbers 1, 2, 3": [1, 2, 3],
    }
    recorded = []  # a Python list: grows while a graph is recorded, not when it runs

    @tf.function
    def double(x: Any) -> tf.Tensor:
        recorded.append("once more")
        return 2 * tf.convert_to_tensor(x)

    counts, logger = {}, tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # TensorFlow warns of what is shown here on purpose
    for kind, values in arguments.items():
        before = len(recorded)
        for value in values:
            double(value)
        counts[kind] = len(recorded) - before
    logger.setLevel(level)
    return counts


def show(text: str, value: Any) -> None:
    """One line of the tour."""
    array = np.asarray(value)
    print(f"  {text:<58} {array.tolist()!s:<28} {array.dtype} {array.shape}")


def works() -> dict[str, Callable[[], tf.Tensor]]:
    """Functions to be timed; each returns a scalar."""
    rng = tf.random.Generator.from_seed(0)
    small = rng.normal((32, 64))
    weights = [rng.normal((64, 64), stddev=0.1) for _ in range(4)]
    large, left, right = rng.normal((1_000_000,)), rng.normal((512, 512)), rng.normal((512, 512))

    def small_gradient() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            features = small
            for weight in weights:
                features = tf.tanh(features @ weight)
            loss = tf.reduce_mean(features**2)
        return tf.add_n([tf.reduce_sum(gradient) for gradient in tape.gradient(loss, weights)])

    def long_chain() -> tf.Tensor:
        x = large
        for _ in range(10):
            x = 0.9 * x + 0.1  # little to compute: moving memory is what takes time
        return tf.reduce_sum(x)

    def matrix_product() -> tf.Tensor:
        return tf.reduce_max(left @ right)

    return {
        "gradient of a small network": small_gradient,
        "20 operations on 1M numbers": long_chain,
        "one 512x512 matrix product": matrix_product,
    }


def measure(repeats: int) -> Timings:
    """Times every work in every mode; results must agree."""
    timings: Timings = {}
    for work, function in works().items():
        timings[work], results = {}, []
        for mode, prepare in MODES.items():
            prepared, times = prepare(function), []
            for _ in range(repeats + 1):
                started = time.perf_counter()
                result = prepared().numpy()  # waits until it is there
                times.append(1e6 * (time.perf_counter() - started))
            first, *others = times
            timings[work][mode] = first, median(others)
            results.append(result)
        np.testing.assert_allclose(results, results[0], rtol=1e-3, atol=1e-3)
    return timings


def print_timings(timings: Timings) -> None:
    """The table."""
    heads = [f"{mode} [us]" for mode in MODES] + ["first: graph [ms]", "first: XLA [ms]"]
    print(f"\n  {'median time of a call':<30}" + "".join(f"{head:>18}" for head in heads))
    for work, row in timings.items():
        cells = [f"{row[mode][1]:,.0f}" for mode in MODES]
        cells += [f"{row[mode][0] / 1000:,.0f}" for mode in ("tf.function", "XLA")]
        print(f"  {work:<30}" + "".join(f"{cell:>18}" for cell in cells))


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The w and b that (4) should find."""
    w = np.cov(x, y, bias=True)[0, 1] / x.var()  # (5)
    return w, y.mean() - w * x.mean()  # (5)


def train(config: Config) -> Result:
    """The tour, the measurement, and a line fitted by gradient descent."""
    check_config(config)
    if config.num_samples < 2:
        raise UserError(f"--num-samples {config.num_samples}: must be at least 2 for a line")
    print("tensors and variables")
    show_tensors()
    print("gradients")
    for name, derivative in zip(("f'(2)", "f''(2)"), cube_derivatives(2.0), strict=True):
        show(f"f(x) = x³: {name}", derivative)
    print("graphs: how often a tf.function was recorded in three calls")
    for kind, count in count_traces().items():
        show(kind, count)
    timings = measure(config.repeats)
    print_timings(timings)

    run = Run(config, __file__)
    rng = np.random.default_rng([config.seed, 1])
    x = rng.uniform(-1.0, 1.0, config.num_samples).astype(np.float32)
    y = (2.0 * x - 1.0 + rng.normal(0.0, 0.3, x.shape)).astype(np.float32)
    line = Line()
    run.track(line=line)

    @tf.function
    def train_step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            error = y - line(x)  # [N]
            with tf.name_scope("loss"):
                loss = tf.reduce_mean(error**2)  # (3)
        dw, db = tape.gradient(loss, [line.w, line.b])
        line.w.assign_sub(config.learning_rate * dw)  # (4)
        line.b.assign_sub(config.learning_rate * db)  # (4)
        return loss, error

    writer = tf.summary.create_file_writer(str(run.run_dir / "tensorboard"))
    with writer.as_default():
        graph = train_step.get_concrete_function(x, y).graph
        tf.summary.graph(graph)
        for step in run.steps(config.num_steps):
            loss, error = train_step(x, y)
            run.log({"train/loss": loss, "train/w": line.w.numpy(), "train/b": line.b.numpy()})
            if run.every(10):
                tf.summary.scalar("line/loss", loss, step)
                tf.summary.histogram("line/error", error, step)

    w, b = least_squares(x, y)
    distance = float(max(abs(line.w.numpy() - w), abs(line.b.numpy() - b)))
    facts: dict[str, float | None] = {"distance_from_least_squares": distance}
    for work, row in timings.items():
        for mode, (_, microseconds) in row.items():
            name = f"{work}_{mode}_us".replace(" ", "_").replace(".", "_").lower()
            facts[name] = round(microseconds, 1)
    result = run.finish(facts=facts)
    draw(result.run_dir, config, timings, x, y, line)
    return result


def draw(
    run_dir: Path, config: Config, timings: Timings, x: np.ndarray, y: np.ndarray, line: Line
) -> None:
    """`timings.png`: the three ways; `learning_curve.png`: the fitted line."""
    with plots.figure(run_dir / "timings.png", size=(9.0, 4.2)) as [axes]:
        for i, mode in enumerate(MODES):
            times = [row[mode][1] for row in timings.values()]
            places = np.arange(len(timings)) + 0.27 * (i - 1)
            bars = axes.bar(places, times, 0.25, label=mode)
            axes.bar_label(bars, [f"{value:,.0f}" for value in times], padding=2, fontsize=9)
        axes.set_xticks(range(len(timings)), list(timings))
        axes.set(yscale="log", ylabel="time of a call [μs], median")
        axes.set_title(f"The same function three ways, {config.repeats} calls on this machine")
        axes.set_ylim(10.0, 3.0 * max(row[mode][1] for row in timings.values() for mode in MODES))
        axes.grid(axis="x", visible=False)
        axes.legend()
    metrics = read_metrics(run_dir)
    with plots.figure(run_dir / "learning_curve.png", columns=2, size=(11.0, 4.2)) as [left, right]:
        left.semilogy(metrics["step"], metrics["train/loss"])
        left.set(xlabel="gradient steps", ylabel="mean squared error L")
        left.set_title(f"Gradient descent, seed {config.seed}")
        ends = np.array([-1.0, 1.0], np.float32)
        right.plot(x, y, ".", label="data")
        right.plot(ends, line(ends), label="fitted by gradient descent")
        right.plot(ends, np.polyval(least_squares(x, y), ends), ":", label="least squares, exact")
        right.set(xlabel="x", ylabel="y")
        right.legend()


@command
def main() -> None:
    """Shows, measures, fits and reports."""
    config = parse(Config, __doc__)
    result = train(config)
    distance = result.facts.pop("distance_from_least_squares")
    report_measure(result, config, "distance from least squares", distance, TARGET, at_most=True)
    print(f"look at loss, histogram and graph: tensorboard --logdir {result.run_dir}")


if __name__ == "__main__":
    main()
