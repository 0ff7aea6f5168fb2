"""Checkpoints: exact round trips, damage that is noticed, nothing executed, a disk that is full."""

import pickle
import resource
import subprocess
import sys
from pathlib import Path

from common import checkpoint
from common.checkpoint import Checkpoint, latest, restore_latest, save
from common.errors import UserError

import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


class Counter:
    """A thing with a state of its own, as replay buffers have."""

    def __init__(self, value=0):
        self.value = value

    def get_state(self):
        return {"value": np.array(self.value)}

    def set_state(self, state):
        self.value = int(state["value"])


class Scale:
    """A thing that only has variables, as a policy's log σ."""

    def __init__(self, value):
        self.variables = [keras.Variable(np.float32(value))]


def test_arrays_generators_and_objects_come_back(tmp_path):
    rng = np.random.default_rng(3)
    rng.integers(0, 10, 5, np.int8)  # leaves half a word in the generator: state, too
    arrays = {
        "floats": np.array([0.1, -np.inf, np.nan, 1e-310]),
        "ints": np.array([[-1, 2**62]]),
        "flags": np.array([True, False]),
        "pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "single": np.array(np.float32(1 / 3)),
        "none": np.zeros((0, 4), np.float32),
        "reversed": np.arange(6, dtype=np.int16)[::-1],
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    meta = {"step": 7, "name": "σ", "nested": [1.5, None, {"a": True}]}
    path = save(tmp_path, 7, {**arrays, "rng": rng, "counter": Counter(42)}, meta)

    blank = {name: np.zeros_like(array) for name, array in arrays.items()}
    other_rng, counter = np.random.default_rng(99), Counter()
    read = Checkpoint(path)
    read.restore({**blank, "rng": other_rng, "counter": counter})
    assert read.meta == meta
    assert counter.value == 42
    for name, array in arrays.items():
        np.testing.assert_array_equal(blank[name], array, strict=True)
    np.testing.assert_array_equal(
        other_rng.integers(0, 10, 50, np.int8), rng.integers(0, 10, 50, np.int8)
    )
    assert other_rng.normal() == rng.normal()


def network():
    inputs = keras.Input((3,))
    features = keras.layers.Dense(4, "tanh")(inputs)
    features = keras.layers.BatchNormalization()(features)  # has weights that are not trained
    return keras.Model(inputs, keras.layers.Dense(2)(features))


def test_a_model_and_its_optimizer_go_on_as_if_nothing_had_happened(tmp_path):
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(6, 8, 3)).astype(np.float32)

    def make(seed):
        keras.utils.set_random_seed(seed)
        model, optimizer = network(), keras.optimizers.Adam(0.1)
        optimizer.build(model.trainable_variables)
        return model, optimizer, Scale(seed)

    def train(model, optimizer, batches):
        model.compile(optimizer, "mse")
        for batch in batches:
            model.train_on_batch(batch, np.ones((8, 2), np.float32))

    model, optimizer, scale = make(1)
    train(model, optimizer, batches[:3])
    optimizer.learning_rate.assign(0.05)
    things = {"model": model, "optimizer": optimizer, "scale": scale}
    save(tmp_path / "checkpoints", 3, things, {})

    model_2, optimizer_2, scale_2 = make(2)
    restore_latest(tmp_path, model=model_2, optimizer=optimizer_2, scale=scale_2)
    assert int(optimizer_2.iterations) == 3
    assert float(optimizer_2.learning_rate) == np.float32(0.05)
    assert float(scale_2.variables[0]) == 1.0
    train(model, optimizer, batches[3:])
    train(model_2, optimizer_2, batches[3:])
    assert len(model.variables) == 8
    for ours, theirs in zip(model.variables, model_2.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def small_things():
    return {"weights": np.arange(6, dtype=np.float32), "rng": np.random.default_rng(3)}


def read_back(path):
    """Meta, array and next random number of a checkpoint of `small_things`."""
    things = {"weights": np.zeros(6, np.float32), "rng": np.random.default_rng(9)}
    read = Checkpoint(path)
    read.restore(things)
    return read.meta, things["weights"].tolist(), things["rng"].integers(2**40)


EXPECTED = ({"step": 1}, [0, 1, 2, 3, 4, 5], np.random.default_rng(3).integers(2**40))


def test_no_truncated_file_is_taken_for_a_checkpoint(tmp_path):
    path = save(tmp_path, 1, small_things(), {"step": 1})
    whole = path.read_bytes()
    assert read_back(path) == EXPECTED
    for length in range(0, len(whole), 3):  # 0: an empty file
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=str(path)):
            read_back(path)


def test_no_flipped_byte_goes_unnoticed(tmp_path):
    """Wherever a byte is changed, the checkpoint is refused or still reads right."""
    path = save(tmp_path, 1, small_things(), {"step": 1})
    whole = path.read_bytes()
    refused = 0
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 0x21
        path.write_bytes(damaged)
        try:
            found = read_back(path)
        except UserError:
            refused += 1
        else:
            assert found == EXPECTED, f"byte {i}"
    assert refused > len(whole) / 2  # names, sizes, checksums and all data; not, say, dates


def test_damage_names_the_checkpoint_to_fall_back_on(tmp_path):
    first = save(tmp_path, 1, small_things(), {"step": 1})
    second = save(tmp_path, 2, small_things(), {"step": 2})
    second.write_bytes(b"")
    with pytest.raises(UserError, match=f"{second} is damaged; delete it, .*{first.name}"):
        Checkpoint(second)
    first.unlink()
    with pytest.raises(UserError, match="starts over"):
        Checkpoint(second)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = save(tmp_path, 1, small_things(), {})
    for other in ({"bias": np.zeros(6)}, {"weights": np.zeros(5)}, {"weights": Counter()}):
        with pytest.raises(UserError, match=str(path)):
            Checkpoint(path).restore(other)


@pytest.mark.parametrize("format", ["array", "npy", "text", "folder"])
def test_a_file_of_another_kind_is_refused(tmp_path, format):
    path = tmp_path / "000000000001.npz"
    if format == "array":
        np.savez(path, other=np.zeros(3))
    elif format == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif format == "text":
        path.write_text("no checkpoint")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=str(path)):
        Checkpoint(path)


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(mark))).close()
    assert mark.exists()  # the bomb works
    mark.unlink()
    bomb = np.array([Bomb(mark)], dtype=object)
    meta = np.frombuffer(b"{}", np.uint8)

    in_array, in_meta, raw = (tmp_path / f"{i:012d}.npz" for i in range(3))
    np.savez(in_array, **{"meta": meta, "weights/array": bomb})
    np.savez(in_meta, meta=bomb)
    raw.write_bytes(pickle.dumps(Bomb(mark)))
    for path in (in_array, in_meta, raw):
        with pytest.raises(UserError, match=str(path)):
            Checkpoint(path).restore({"weights": np.zeros(1)})
        assert not mark.exists()
    with pytest.raises(ValueError, match="Object arrays"):  # none is ever written, either
        save(tmp_path, 9, {"weights": bomb}, {})


def test_the_newest_are_kept(tmp_path):
    for step in (1, 20, 300, 4000):
        save(tmp_path / "checkpoints", step, small_things(), {"step": step})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["000000000300.npz", "000000004000.npz"]
    assert checkpoint.KEEP == 2
    assert latest(tmp_path).name == "000000004000.npz"
    assert restore_latest(tmp_path).meta == {"step": 4000}


def test_no_checkpoint(tmp_path):
    assert latest(tmp_path) is None
    with pytest.raises(UserError, match=str(tmp_path)):
        restore_latest(tmp_path)


def test_an_unfinished_file_is_not_taken_for_a_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1, small_things(), {"step": 1})
    (folder / "000000000002.npz.tmp").write_bytes(b"PK half a checkpoint")  # killed while writing
    assert restore_latest(tmp_path).meta == {"step": 1}
    save(folder, 2, small_things(), {"step": 2})
    assert restore_latest(tmp_path).meta == {"step": 2}
    assert not list(folder.glob("*.tmp"))


# What a run on a disk that is nearly full does: the first checkpoint fits, the second does not.
FULL_DISK = """
import sys
from pathlib import Path
import numpy as np
from common.checkpoint import save
from common.errors import UserError

folder = Path(sys.argv[1])
save(folder, 1, {"small": np.arange(1000)}, {"step": 1})
try:
    save(folder, 2, {"large": np.zeros(2**21, np.uint8)}, {"step": 2})
except UserError as error:
    sys.exit(str(error))
"""


def assert_survives_a_full_disk(folder, before=None):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=before,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    sentence = done.stderr.strip()
    assert "\n" not in sentence
    assert str(folder / "000000000002.npz") in sentence
    assert "cannot write the checkpoint" in sentence
    assert "make room" in sentence
    assert [path.name for path in folder.iterdir()] == ["000000000001.npz"]
    small = np.zeros(1000, int)
    read = Checkpoint(folder / "000000000001.npz")
    read.restore({"small": small})
    assert read.meta == {"step": 1}
    np.testing.assert_array_equal(small, np.arange(1000))
    return sentence


def test_a_file_size_limit_is_told_in_one_sentence(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    assert "File too large" in assert_survives_a_full_disk(tmp_path / "checkpoints", limit)


def test_a_full_disk_is_told_in_one_sentence(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        sentence = assert_survives_a_full_disk(tmp_path / "checkpoints")
        assert "No space left on device" in sentence
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "checkpoints").write_text("a file stands in the way")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        save(tmp_path / "checkpoints", 1, small_things(), {})
