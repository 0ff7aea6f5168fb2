"""Checkpoints: everything a run needs to go on, in one `.npz` file without pickle.

A checkpoint is written under a temporary name, flushed to disk and renamed, so that a kill at any
moment leaves the previous one whole. Arrays carry zip checksums; a damaged file is noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError

import numpy as np

KEEP = 2  # checkpoints that stay on disk
# What reading a damaged file raises; RuntimeError where a flipped bit asks for zip features.
_DAMAGE = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile)


def get_state(thing: Any) -> dict[str, np.ndarray]:
    """What `set_state` needs to make an equal `thing` again: a dictionary of arrays.

    Args:
        thing: a Keras model or optimizer (anything with `variables`), a NumPy generator, an array,
            or an object with `get_state()` and `set_state(state)` of its own.
    """
    if isinstance(thing, np.random.Generator):
        text = json.dumps(thing.bit_generator.state)
        return {"state": np.frombuffer(text.encode(), np.uint8)}
    if isinstance(thing, np.ndarray):
        return {"array": thing}
    if hasattr(thing, "get_state"):
        return thing.get_state()
    return {f"{i:03d}": np.asarray(variable) for i, variable in enumerate(thing.variables)}


def set_state(thing: Any, state: Mapping[str, np.ndarray]) -> None:
    """Puts back, in place, what `get_state` took."""
    if isinstance(thing, np.random.Generator):
        thing.bit_generator.state = json.loads(state["state"].tobytes().decode())
    elif isinstance(thing, np.ndarray):
        thing[...] = state["array"]
    elif hasattr(thing, "set_state"):
        thing.set_state(state)
    else:
        assert len(state) == len(thing.variables), "build models and optimizers before Run.track"
        for i, variable in enumerate(thing.variables):
            variable.assign(state[f"{i:03d}"])


def save(folder: Path, step: int, things: Mapping[str, Any], meta: dict[str, Any]) -> Path:
    """Writes `<folder>/<step>.npz` atomically and removes all but the newest `KEEP` checkpoints.

    Args:
        folder: the run's `checkpoints/`; made if missing.
        step: environment steps so far; becomes the file name, 12 digits.
        things: what to save, by name; see `get_state`.
        meta: anything JSON can hold.

    Raises:
        UserError: the disk is full or the folder cannot be written; older checkpoints are kept.
    """
    path = folder / f"{step:012d}.npz"
    temporary = folder / f"{path.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _write(archive, "meta", np.frombuffer(json.dumps(meta).encode(), np.uint8))
            for name, thing in things.items():
                for key, array in get_state(thing).items():
                    _write(archive, f"{name}/{key}", array)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for old in sorted(folder.glob("*.npz"))[:-KEEP]:
            old.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write the checkpoint {path}: {error.strerror}; "
            "make room, then go on from the previous one with --resume"
        ) from error
    return path


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


class Checkpoint:
    """A checkpoint on disk; arrays are read one at a time, when asked for."""

    def __init__(self, path: Path) -> None:
        """Opens `path` and reads its `meta`.

        Raises:
            UserError: the file is damaged.
        """
        self.path = path
        try:
            self._archive = np.load(path, allow_pickle=False)
            self.meta: dict[str, Any] = json.loads(self._archive["meta"].tobytes().decode())
        except _DAMAGE as error:
            raise self._damaged() from error

    def restore(self, things: Mapping[str, Any]) -> None:
        """Puts the saved state back into `things`, by name.

        Raises:
            UserError: the file is damaged, or does not hold what is asked for.
        """
        for name, thing in things.items():
            try:
                set_state(thing, _Section(self._archive, name))
            except _DAMAGE as error:
                raise self._damaged() from error

    def _damaged(self) -> UserError:
        others = [p.name for p in sorted(self.path.parent.glob("*.npz")) if p != self.path]
        then = f"the previous one ({others[-1]}) will be used" if others else "the run starts over"
        return UserError(f"the checkpoint {self.path} is damaged; delete it, then {then}")


class _Section(Mapping[str, np.ndarray]):
    """The arrays of one tracked thing: `section["key"]` reads `name/key` from the archive."""

    def __init__(self, archive: Any, name: str) -> None:
        self._archive, self._prefix = archive, f"{name}/"

    def __getitem__(self, key: str) -> np.ndarray:
        return self._archive[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (
            key.removeprefix(self._prefix)
            for key in self._archive.files
            if key.startswith(self._prefix)
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)


def latest(run_dir: Path | str) -> Path | None:
    """The newest finished checkpoint of a run, or None."""
    paths = sorted((Path(run_dir) / "checkpoints").glob("*.npz"))
    return paths[-1] if paths else None


def restore_latest(run_dir: Path | str, **things: Any) -> Checkpoint:
    """Puts the newest checkpoint's state into `things`, for playing or for further use.

    Raises:
        UserError: the run has no checkpoint, or it is damaged.
    """
    path = latest(run_dir)
    if path is None:
        raise UserError(f"{run_dir}: no checkpoint there; give the folder of a run that has one")
    checkpoint = Checkpoint(path)
    checkpoint.restore(things)
    return checkpoint
