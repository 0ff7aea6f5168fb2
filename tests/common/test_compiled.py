"""`compiled`: what crosses into TensorFlow and back arrives unharmed, with and without XLA."""

import os
from typing import NamedTuple

from common.acting import forward
from common.compiled import compiled, in_large_batches, mean_over, use_threads_for
from common.networks import body
from tests import forked

import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete


class Pair(NamedTuple):
    """Arguments and results with names."""

    left: object
    right: object


@pytest.fixture(params=[True, False], ids=["xla", "graph"])
def xla(request):
    return request.param


def as_float(tensor):
    return tf.cast(tensor, tf.float32)


def test_every_type_crosses_unharmed(xla):
    # Small integers have the bits of floats too small to be normal: none may become zero.
    ints = np.array([0, 1, -1, 2, 127, -128, 255, 8388607, 2**31 - 1, -(2**31)])
    floats = np.array([0.0, -0.0, 1.5, -1 / 3, 3e38, 1e-37, np.inf, -np.inf, np.nan])
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 16, 8)
    flags = np.array([[True, False, True]])
    dtypes = []

    @compiled(xla=xla)
    def function(ints, short, floats, doubles, pixels, flags, one, half, true):
        arguments = [ints, short, floats, doubles, pixels, flags, one, half, true]
        dtypes.extend(argument.dtype for argument in arguments)
        high, low = ints // 65536, ints % 65536  # each exact in float32
        return [
            [as_float(high), as_float(low)],
            *[as_float(argument) for argument in arguments[1:]],
        ]

    for _ in range(2):  # the second call goes through a buffer that has been used
        (high, low), short, single, double, images, bools, one, half, true = function(
            ints,
            ints[:7].astype(np.int16),
            floats.astype(np.float32),
            floats,
            pixels,
            flags,
            -7,
            0.5,
            True,
        )
        np.testing.assert_array_equal(high.astype(int) * 65536 + low.astype(int), ints)
        np.testing.assert_array_equal(short, ints[:7].astype(np.float32), strict=True)
        np.testing.assert_array_equal(single, floats.astype(np.float32), strict=True)
        np.testing.assert_array_equal(double, floats.astype(np.float32), strict=True)
        assert np.signbit(single[1])
        np.testing.assert_array_equal(images, pixels.astype(np.float32), strict=True)
        np.testing.assert_array_equal(bools, [[1.0, 0.0, 1.0]])
        assert (one.shape, float(one), float(half), float(true)) == ((), -7.0, 0.5, 1.0)
    assert dtypes == [tf.int32] * 2 + [tf.float32] * 2 + [tf.uint8, tf.float32] + [
        tf.int32,
        tf.float32,
        tf.float32,
    ]


def test_arrays_that_do_not_lie_in_order_arrive_in_order(xla):
    pixels = np.moveaxis(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), 0, 2)
    numbers = np.arange(12.0).reshape(3, 4).T[::-1]

    @compiled(xla=xla)
    def function(pixels, numbers):
        return as_float(pixels), as_float(numbers)

    images, floats = function(pixels, numbers)
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_array_equal(floats, numbers)


def test_nested_structures_go_in_and_come_out(xla):
    @compiled(xla=xla)
    def function(pair, extra):
        assert isinstance(pair, Pair)
        total = tf.reduce_sum(pair.left) + pair.right[0] - pair.right[1]
        return {
            "z": total,
            "a": (pair.left, {"inner": extra["y"]}),
            "pair": Pair(extra["x"], (pair.right[0],)),
        }

    left = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = function(Pair(left, (1.0, 2.0)), {"y": np.float32([5]), "x": np.zeros((1, 0, 2))})
    assert set(out) == {"z", "a", "pair"}
    assert out["z"].shape == ()
    assert out["z"] == 14.0
    np.testing.assert_array_equal(out["a"][0], left, strict=True)
    np.testing.assert_array_equal(out["a"][1]["inner"], np.float32([5]), strict=True)
    assert isinstance(out["pair"], Pair)
    assert out["pair"].left.shape == (1, 0, 2)
    assert isinstance(out["pair"].right, tuple)
    assert out["pair"].right[0] == 1.0


def test_one_tensor_comes_back_as_one_array(xla):
    out = compiled(lambda x: 2 * x, xla=xla)(np.float32([1, 2, 3]))
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, [2, 4, 6])


def test_each_shape_and_type_is_compiled_once(xla):
    traced = []

    @compiled(xla=xla)
    def function(x, y):
        traced.append((tuple(x.shape), y.dtype))
        return as_float(x) * 2 + as_float(y)

    for _ in range(3):
        np.testing.assert_array_equal(function(np.ones((2, 3)), 1), np.full((2, 3), 3.0))
        np.testing.assert_array_equal(function(np.ones(6), 1), np.full(6, 3.0))
        np.testing.assert_array_equal(function(np.ones(6), 0.5), np.full(6, 2.5))
    assert traced == [((2, 3), tf.int32), ((6,), tf.int32), ((6,), tf.float32)]


def test_results_survive_the_next_call(xla):
    @compiled(xla=xla)
    def function(x, pixels):
        return x, as_float(pixels)

    first = function(np.float32([1, 2]), np.uint8([3, 4]))
    second = function(np.float32([5, 6]), np.uint8([7, 8]))
    np.testing.assert_array_equal(first, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(second, [[5, 6], [7, 8]])


def test_arguments_may_change_after_the_call(xla):
    identity = compiled(lambda x: x, xla=xla)
    argument = np.float32([1, 2, 3])
    result = identity(argument)
    argument[:] = 0
    np.testing.assert_array_equal(result, [1, 2, 3])
    np.testing.assert_array_equal(identity(result), [1, 2, 3])


def test_loop_goes_through_the_slices_in_order(xla):
    variable = tf.Variable(1.0)

    @compiled(loop=True, xla=xla)
    def step(batch):
        variable.assign(2 * variable + batch["x"] - batch["none"])
        return {"value": variable.read_value(), "square": batch["x"] ** 2}

    metrics = step({"x": np.float32([1, 2, 3]), "none": np.zeros(3)})  # 1 -> 3 -> 8 -> 19
    assert variable.numpy() == 19.0
    assert metrics["value"] == 10.0
    assert metrics["square"] == pytest.approx(14 / 3)
    metrics = step({"x": np.float32([-38]), "none": np.zeros(1)})  # one slice: no loop at all
    assert (variable.numpy(), metrics["value"], metrics["square"]) == (0.0, 0.0, 1444.0)


@pytest.mark.parametrize("repetitions", [1, 2, 5])
def test_loop_takes_the_mean_of_scalars_and_stacks_all_else(xla, repetitions):
    variable = tf.Variable(0.0)

    @compiled(loop=True, xla=xla)
    def step(batch, weight):
        variable.assign_add(1.0)
        rows = batch.left * weight[:, None]
        return {"loss": tf.reduce_sum(batch.right)}, Pair(rows, (batch.right + variable, rows[0]))

    rng = np.random.default_rng(repetitions)
    left = rng.normal(size=(repetitions, 3, 2)).astype(np.float32)
    right = rng.normal(size=(repetitions, 3)).astype(np.float32)
    weight = rng.normal(size=(repetitions, 3)).astype(np.float32)
    metrics, pair = step(Pair(left, right), weight)
    assert metrics["loss"].shape == ()
    assert metrics["loss"] == pytest.approx(right.sum(axis=1).mean(), rel=1e-5)
    assert isinstance(pair, Pair)
    np.testing.assert_allclose(pair.left, left * weight[..., None], rtol=1e-6)  # [K, 3, 2]
    order = np.arange(1, repetitions + 1)[:, None]
    np.testing.assert_allclose(pair.right[0], right + order, rtol=1e-5, atol=1e-6)  # [K, 3]
    np.testing.assert_allclose(pair.right[1], pair.left[:, 0], rtol=1e-6)  # [K, 2]
    assert pair.right[0].dtype == np.float32


def make_training(learning_rate=0.01):
    """A network, its optimizer and one gradient step."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    features = keras.layers.Dense(16, "tanh")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(2)(features))
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(network.trainable_variables)

    def train_step(batch):
        values = [variable.value for variable in network.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = tf.reduce_mean((network(batch.left) - batch.right) ** 2)
        optimizer.apply(tape.gradient(loss, values), network.trainable_variables)
        return {"loss": loss}

    return network, train_step


def make_batches(count):
    rng = np.random.default_rng(1)
    return Pair(
        rng.normal(size=(count, 8, 3)).astype(np.float32),
        rng.normal(size=(count, 8, 2)).astype(np.float32),
    )


def test_loop_trains_as_the_eager_loop_does(xla):
    batches = make_batches(5)
    network, train_step = make_training()
    losses = [float(train_step(Pair(*pair))["loss"]) for pair in zip(*batches, strict=True)]
    expected = [np.asarray(weight) for weight in network.weights]

    network, train_step = make_training()
    metrics = compiled(train_step, loop=True, xla=xla)(batches)
    assert metrics["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    for weight, value in zip(network.weights, expected, strict=True):
        np.testing.assert_allclose(np.asarray(weight), value, atol=1e-6)


def test_mean_over_gives_each_slice_of_each_tensor(xla):
    @compiled(xla=xla)
    def function(orders, table):
        def one(order):
            return {"picked": tf.gather(table, order), "pair": Pair(as_float(order[0]), table[0])}

        return mean_over(one, orders)

    orders = np.array([[0, 2], [1, 1], [2, 0], [1, 2]])
    table = np.float32([1, 10, 100])
    out = function(orders, table)
    np.testing.assert_array_equal(out["picked"], table[orders])  # [K, 2]: stacked
    assert (out["pair"].left, out["pair"].right) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("images", "hidden_sizes", "how"),
    [
        (False, (64, 127), {"xla": True}),
        (False, (64, 128), {"xla": False, "unroll": 4}),
        (False, (), {"xla": True}),
        (True, (256, 256), {"xla": False}),
    ],
)
def test_how_several_networks_are_trained_depends_on_their_width(images, hidden_sizes, how):
    assert use_threads_for(images, hidden_sizes) == how


@pytest.mark.parametrize(("unroll", "copies"), [(1, 2), (2, 4), (4, 6), (6, 6), (100, 6)])
def test_unroll_says_how_many_calls_stand_side_by_side(unroll, copies):
    calls = []

    @compiled(xla=False, loop=True, unroll=unroll)
    def one(number):
        calls.append(number)
        return number

    assert one(np.arange(6, dtype=np.float32)) == 2.5
    assert len(calls) == copies  # a piece to see what it returns, one in the loop; or just all


@pytest.mark.parametrize("unroll", [1, 2, 4, 6, 100])
def test_unrolled_pieces_keep_the_order_and_the_place_of_each_slice(xla, unroll):
    total = tf.Variable(0.0)

    @compiled(xla=xla)
    def function(numbers):
        def one(number):
            total.assign(10.0 * total + number[0])  # shows the order
            return {"mean": number[1], "stacked": tf.stack([total.value(), number[0]])}

        return mean_over(one, numbers, unroll)

    numbers = np.array([[1, 6], [2, 0], [3, 0], [4, 0], [5, 0], [6, 12]], np.float32)
    out = function(numbers)
    assert out["mean"] == 3.0
    sofar = [1, 12, 123, 1234, 12345, 123456]
    np.testing.assert_array_equal(out["stacked"], np.stack([sofar, numbers[:, 0]], axis=1))


@pytest.mark.parametrize("loop", [True, False])
def test_refreshes_keeps_the_twin_equal_to_the_network(xla, loop):
    network, train_step = make_training(learning_rate=0.1)
    twin = forward(network)
    x = np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32)
    before = twin(x)
    train = compiled(train_step, loop=loop, xla=xla, refreshes=twin)
    batches = make_batches(4)
    for k in range(3):
        metrics = train(batches if loop else Pair(batches.left[k], batches.right[k]))
        assert set(metrics) == {"loss"}
        assert metrics["loss"].shape == ()
        np.testing.assert_allclose(twin(x), np.asarray(network(x)), atol=1e-6)
    assert np.abs(twin(x) - before).max() > 0.05  # there was something to renew


def test_a_mistake_in_the_function_is_the_users_to_see(xla):
    @compiled(xla=xla)
    def function(x):
        return tf.reshape(x, [7])

    with pytest.raises(ValueError, match="reshape"):
        function(np.zeros(3))


def test_without_xla_by_the_environment(monkeypatch, capfd):
    """Printing from inside is a reason to want it: XLA has no operation for that."""

    def printing():
        @compiled
        def double(x):
            tf.print("x is", x)
            return 2.0 * x

        return double(np.float32([1.0, 3.0]))

    for value in ("", "0"):
        monkeypatch.setenv("NO_XLA", value)
        with pytest.raises(tf.errors.InvalidArgumentError, match="XLA"):
            printing()
    monkeypatch.setenv("NO_XLA", "1")
    np.testing.assert_array_equal(printing(), [2.0, 6.0])
    assert "x is [1 3]" in capfd.readouterr().err


@pytest.mark.parametrize(
    "without",
    [
        False,
        pytest.param(True, marks=pytest.mark.no_xla),
        pytest.param(False, marks=[pytest.mark.no_xla, pytest.mark.xla]),
    ],
)
def test_marks_say_which_tests_do_without_xla(without, tmp_path):
    assert os.environ.get("NO_XLA") == ("1" if without else None)
    script = tmp_path / "script.py"
    script.write_text("import os\nprint(os.environ['NO_XLA'])\n")
    assert forked.run_to_end(script, cwd=tmp_path) == ("1\n" if without else "\n")


def test_name_and_docstring_stay():
    @compiled(xla=False)
    def train_step(x):
        """One step."""
        return x

    assert (train_step.__name__, train_step.__doc__) == ("train_step", "One step.")


def test_reads_and_updates_of_weights_keep_their_order():
    """With this pass, some compilations of SAC's update read weights too late or too early."""
    assert tf.config.optimizer.get_experimental_options()["dependency_optimization"] is False


@pytest.mark.parametrize("kind", ["vectors", "images", "discrete"])
def test_large_batches_are_the_batches_one_by_one(kind, xla):
    rng = np.random.default_rng(0)
    space, batches = {  # K = 3 batches of B = 2
        "vectors": (Box(-1.0, 1.0, (4,), np.float32), rng.normal(size=(3, 2, 4))),
        "images": (Box(0, 255, (40, 40, 1), np.uint8), rng.integers(0, 256, (3, 2, 40, 40, 1))),
        "discrete": (Discrete(5), np.array([[0, 1], [2, 3], [4, 0]])),
    }[kind]
    network = keras.Model(*body(space, (6,)))
    batches = batches.astype(
        {"vectors": np.float32, "images": np.uint8, "discrete": np.int32}[kind]
    )
    rows = []  # in each call of the network

    def watched(inputs):
        rows.append(inputs.shape[0])
        return network(inputs)

    outputs = compiled(lambda all_of_them: in_large_batches(watched, all_of_them), xla=xla)(batches)
    assert set(rows) == ({2} if kind == "images" else {6})  # images would need too much memory
    assert outputs.shape == (3, 2, network.output_shape[1])
    for batch, output in zip(batches, outputs, strict=True):
        np.testing.assert_allclose(output, network(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "size", "rows", "together"),
    [(6, 2, 7, 3), (6, 2, 8, 3), (6, 2, 12, 6), (6, 2, 99, 6), (5, 2, 8, 1), (4, 9, 8, 1)],
)
def test_large_batches_have_at_most_so_many_rows(count, size, rows, together):
    batches = np.arange(count * size * 3, dtype=np.float32).reshape(count, size, 3)
    seen = []

    def network(inputs):
        seen.append(inputs.shape[0])
        return 2.0 * inputs[:, :2]

    outputs = compiled(lambda everything: in_large_batches(network, everything, rows))(batches)
    assert set(seen) == {together * size}
    np.testing.assert_array_equal(outputs, 2.0 * batches[:, :, :2])
