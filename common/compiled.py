"""`compiled`: a function of NumPy arrays as one fast call into TensorFlow."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import common.quiet  # noqa: F401

import numpy as np
import tensorflow as tf

# Without XLA, this pass of TensorFlow 2.21 now and then drops the edge by which a weight is read
# before its update and again after it, where one function does both: losses of SAC with a value
# network came out wrong in about one of two compilations.
tf.config.optimizer.set_experimental_options({"dependency_optimization": False})


class Twin(Protocol):
    """A copy of a network's weights outside TensorFlow; see `common.acting`."""

    weights: list[Any]  # Keras variables, in the order in which `load` wants their values

    def load(self, vector: np.ndarray) -> None:
        """Takes the weights' new values, all flattened into one vector."""


def use_threads(intra_op: int, inter_op: int) -> None:
    """Sets TensorFlow's thread pools; each script chooses what it measured to be fastest.

    Does nothing when TensorFlow is already running, e.g. on a second `train` in one process.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(intra_op)
        tf.config.threading.set_inter_op_parallelism_threads(inter_op)
    except RuntimeError:
        pass


def use_threads_for(images: bool, hidden_sizes: Sequence[int]) -> dict[str, Any]:
    """Sets thread pools for several networks that are trained together, by what was measured.

    The products of narrow layers are too short to be spread over threads one by one: XLA takes all
    operations together. A wide layer's product keeps a thread busy: a plain graph runs one on each.

    Args:
        images: whether observations are images.
        hidden_sizes: units of the dense layers.

    Returns:
        What `compiled` should be told: `xla`, and `unroll` for its loop.
    """
    if images:
        use_threads(2, 2)
        return {"xla": False}
    if max(hidden_sizes, default=0) >= 128:
        use_threads(1, 2)
        return {"xla": False, "unroll": 4}
    use_threads(2, 1)
    return {"xla": True}


def compiled(
    function: Callable[..., Any] | None = None,
    *,
    xla: bool = True,
    loop: bool = False,
    unroll: int = 1,
    refreshes: Twin | None = None,
) -> Any:
    """Compiles a function of tensors into a function of NumPy arrays.

    A call into TensorFlow costs 70 to 200 us on top of its arithmetic, each array that crosses the
    border 10 to 20 us more. So all arrays of four-byte types cross together, packed into one
    tensor, and all results come back packed into one; only images (uint8) travel on their own.

    The function is traced once for each combination of argument shapes: Python's `if`, `for` and
    `len` are done with by then, and what depends on a tensor's values is said with `tf.where`,
    `tf.cond` or `mean_over`. It must return float32 tensors: one, or a tuple, dictionary or
    NamedTuple of them.

    Args:
        function: the function; its arguments may be arrays, scalars, and nested tuples of them.
        xla: compile with XLA. Faster for small dense networks, slower for convolutions on CPUs. It
            takes seconds at the first call and knows no `tf.print`: with NO_XLA=1 in the
            environment of the process, no function is compiled with it.
        loop: the leading axis of every array counts repetitions: call the function once for each
            slice, in order and all inside one call into TensorFlow. Of scalar results the mean is
            returned, other results are stacked along a new leading axis.
        unroll: of a loop's K repetitions, at most so many side by side; see `mean_over`.
        refreshes: what `common.acting.forward` made of the network that the function updates;
            its copy of the weights is renewed in the same call.

    Returns:
        A function that takes NumPy arrays and Python scalars and returns NumPy arrays in the same
        structure as the tensors that `function` returns.
    """
    if function is None:
        return functools.partial(compiled, xla=xla, loop=loop, unroll=unroll, refreshes=refreshes)
    return functools.wraps(function)(_Compiled(function, xla, loop, unroll, refreshes))


class _Compiled:
    """Keeps one compiled variant for each combination of argument shapes."""

    def __init__(
        self,
        function: Callable[..., Any],
        xla: bool,
        loop: bool,
        unroll: int,
        twin: Twin | None,
    ) -> None:
        self._function = function
        self._settings = xla, loop, unroll, twin
        self._variants: dict[tuple, _Variant] = {}

    def __call__(self, *args: Any) -> Any:
        flat: list[np.ndarray] = []
        key = _flatten(args, flat)
        variant = self._variants.get(key)
        if variant is None:
            variant = _Variant(self._function, args, flat, *self._settings)
            self._variants[key] = variant
        return variant(flat)


# How NumPy types travel, in four bytes each; booleans as 0.0 and 1.0. The vector that carries them
# is declared int32: taken for floats, small integers might be flushed to zero on the way.
_WIRE = {"f": np.float32, "i": np.int32, "u": np.int32, "b": np.float32}


class _Variant:
    """The function compiled for one combination of argument shapes."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple,
        flat: list[np.ndarray],
        xla: bool,
        loop: bool,
        unroll: int,
        twin: Twin | None,
    ) -> None:
        self._twin = twin
        # Images stay apart; everything else gets its place in one vector.
        self._apart = [i for i, leaf in enumerate(flat) if leaf.dtype == np.uint8]
        packed = [i for i in range(len(flat)) if i not in self._apart]
        dtypes = {i: _WIRE[flat[i].dtype.kind] for i in packed}
        ends = np.cumsum([0] + [flat[i].size for i in packed])
        self._buffer = np.zeros(int(ends[-1]), np.int32)
        self._views = []  # (argument, its place in the buffer, with the argument's type and shape)
        for i, start, end in zip(packed, ends, ends[1:], strict=False):
            view = self._buffer[start:end].view(dtypes[i]).reshape(flat[i].shape)
            self._views.append((i, view))

        def unpack(vector: tf.Tensor, *images: tf.Tensor) -> Any:
            leaves: list[Any] = [None] * len(flat)
            for i, image in zip(self._apart, images, strict=True):
                leaves[i] = image
            for i, start, end in zip(packed, ends, ends[1:], strict=False):
                leaf = tf.reshape(vector[start:end], flat[i].shape)
                leaves[i] = leaf if dtypes[i] is np.int32 else tf.bitcast(leaf, tf.float32)
            return tf.nest.pack_sequence_as(args, leaves)

        def call(vector: tf.Tensor, *images: tf.Tensor) -> tf.Tensor:
            arguments = unpack(vector, *images)
            if loop:
                results = mean_over(lambda one: function(*one), arguments, unroll)
            else:
                results = function(*arguments)
            self._structure = tf.nest.map_structure(lambda t: tuple(t.shape), results)
            outputs = tf.nest.flatten(results)
            if twin is not None:
                outputs += [weight.value for weight in twin.weights]
            return tf.concat([tf.reshape(output, [-1]) for output in outputs], axis=0)

        signature = [tf.TensorSpec(self._buffer.shape, tf.int32)]
        signature += [tf.TensorSpec(flat[i].shape, tf.uint8) for i in self._apart]
        xla = xla and os.environ.get("NO_XLA", "0") in ("", "0")
        # Without AutoGraph, which would take a second or two to translate the source of all that
        # is called here, down into Keras and TensorFlow Probability.
        graph = tf.function(call, input_signature=signature, jit_compile=xla, autograph=False)
        concrete = graph.get_concrete_function()
        # Calling the concrete function itself takes 60 us more, in which TensorFlow matches Python
        # arguments to the signature. What we pass always fits, so we enter behind that.
        enter = getattr(concrete, "_call_flat", None)
        captured = concrete.captured_inputs
        self._call: Callable[[list[tf.Tensor]], tf.Tensor] = (
            (lambda tensors: concrete(*tensors))
            if enter is None
            else (lambda tensors: enter(tensors, captured))
        )
        # Where each result stands in the returned vector.
        shapes = _leaves(self._structure)
        sizes = [int(np.prod(shape)) for shape in shapes]
        stops = np.cumsum(sizes).tolist()
        self._places = [(b - n, b, s) for n, b, s in zip(sizes, stops, shapes, strict=True)]
        self._end = stops[-1] if stops else 0

    def __call__(self, flat: list[np.ndarray]) -> Any:
        for i, view in self._views:
            view[...] = flat[i]
        # tf.constant copies: the buffer may be refilled while results are still in use.
        tensors = [tf.constant(self._buffer), *[tf.constant(flat[i]) for i in self._apart]]
        output = self._call(tensors).numpy()
        if self._twin is not None:
            self._twin.load(output[self._end :])
        leaves = [output[a:b].reshape(shape) for a, b, shape in self._places]
        return _rebuild(self._structure, iter(leaves))


def mean_over(function: Callable[[Any], Any], slices: Any, unroll: int = 1) -> Any:
    """Calls `function` on each slice of the leading axis, in order; for use in compiled functions.

    Args:
        function: takes one slice, returns float32 tensors in any structure.
        slices: a tensor, or a structure of tensors, whose leading axes have the same length K.
        unroll: at most so many calls stand next to each other in the graph: the largest divisor of
            K up to it. From such a piece to the next goes a loop, which waits for all operations of
            the piece; within it, calls overlap where they can. Longer pieces take longer to
            compile.

    Returns:
        What `function` returned, in the same structure: the means of scalars, and everything else
        stacked, [K, ...].
    """
    repetitions = tf.nest.flatten(slices)[0].shape[0]
    length = _largest_divisor(repetitions, unroll)
    pieces = tf.nest.map_structure(
        lambda leaf: tf.reshape(leaf, [-1, length, *leaf.shape[1:]]), slices
    )

    def piece(k: Any) -> Any:
        parts = [
            function(tf.nest.map_structure(lambda leaf, i=i: leaf[k, i], pieces))
            for i in range(length)
        ]
        return tf.nest.map_structure(
            lambda *t: tf.stack(t) if t[0].shape.rank else functools.reduce(tf.add, t), *parts
        )

    count = repetitions // length
    if count == 1:
        return tf.nest.map_structure(lambda t: t if t.shape.rank else t / repetitions, piece(0))
    # What a piece returns: traced one time more than needed, which neither compiles nor runs it.
    once = tf.function(lambda: piece(0), autograph=False)
    returned = once.get_concrete_function().structured_outputs
    kinds = tf.nest.flatten(returned)

    def begin(kind: Any) -> Any:
        if not kind.shape.rank:
            return tf.zeros([], kind.dtype)
        return tf.TensorArray(kind.dtype, count, element_shape=kind.shape)

    def append(so_far: Any, result: tf.Tensor, k: tf.Tensor) -> Any:
        return so_far.write(k, result) if result.shape.rank else so_far + result

    # A while loop around the pieces: compiling takes as long for 100 repetitions as for two.
    def body(k: tf.Tensor, so_far: list) -> tuple[tf.Tensor, list]:
        results = tf.nest.flatten(piece(k))
        return k + 1, [append(old, new, k) for old, new in zip(so_far, results, strict=True)]

    _, collected = tf.while_loop(
        lambda k, _: k < count,
        body,
        (tf.constant(0), [begin(kind) for kind in kinds]),
        parallel_iterations=1,
    )
    results = [
        tf.reshape(so_far.stack(), [repetitions, *kind.shape[1:]])
        if kind.shape.rank
        else so_far / repetitions
        for so_far, kind in zip(collected, kinds, strict=True)
    ]
    return tf.nest.pack_sequence_as(returned, results)


def in_large_batches(
    network: Callable[[tf.Tensor], tf.Tensor], batches: tf.Tensor, rows: int = 4096
) -> tf.Tensor:
    """What a network says of K batches, many at a time; for use in compiled functions.

    Large products keep all threads busy; beyond some thousand rows, layers outgrow the cache.
    Images go one batch after the other: side by side, their features may need gigabytes.

    Args:
        network: takes [B, ...] and returns float32.
        batches: [K, B, ...].
        rows: at most so many go through the network together, unless a batch alone has more; how
            many batches that are is a divisor of K.

    Returns:
        The network's outputs, [K, B, ...].
    """
    count, size, *shape = batches.shape
    most = 1 if batches.dtype == tf.uint8 else max(rows // size, 1)
    together = _largest_divisor(count, most)
    pieces = tf.reshape(batches, [count // together, together * size, *shape])
    outputs = mean_over(network, pieces)  # stacked, without a mean: outputs are no scalars
    return tf.reshape(outputs, [count, size, *outputs.shape[2:]])


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`."""
    return max(n for n in range(1, most + 1) if number % n == 0)


def _flatten(structure: Any, leaves: list[np.ndarray]) -> Any:
    """Appends the arrays of a structure in `tf.nest` order; returns what makes a variant."""
    if isinstance(structure, tuple | list):
        return (type(structure), *[_flatten(part, leaves) for part in structure])
    if isinstance(structure, dict):
        return tuple((key, _flatten(structure[key], leaves)) for key in sorted(structure))
    leaf = np.asarray(structure)
    leaves.append(leaf)
    return leaf.shape, leaf.dtype.char


def _leaves(structure: Any) -> list[tuple]:
    """Flattens a structure whose leaves are shapes, in `tf.nest` order."""
    if isinstance(structure, dict):
        return [leaf for key in sorted(structure) for leaf in _leaves(structure[key])]
    if _is_shape(structure):
        return [structure]
    return [leaf for part in structure for leaf in _leaves(part)]


def _rebuild(structure: Any, leaves: Any) -> Any:
    """The inverse: puts results back where the shapes stand."""
    if isinstance(structure, dict):
        return {key: _rebuild(structure[key], leaves) for key in sorted(structure)}
    if _is_shape(structure):
        return next(leaves)
    parts = [_rebuild(part, leaves) for part in structure]
    return type(structure)(*parts) if hasattr(structure, "_fields") else tuple(parts)


def _is_shape(structure: Any) -> bool:
    return isinstance(structure, tuple) and all(isinstance(n, int) for n in structure)
