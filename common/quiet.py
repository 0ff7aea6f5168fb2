"""Imports TensorFlow without its start-up chatter; import this module before TensorFlow.

TensorFlow reports on missing GPUs and on its own defaults before any log level can be set, in a
dozen lines that read like errors. They go to a file instead, and are shown if the import fails.
Set TF_CPP_MIN_LOG_LEVEL yourself to see what TensorFlow has to say while it runs.
"""

from __future__ import annotations

import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # failures still arrive as Python exceptions
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def _import_quietly() -> None:
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            import keras  # noqa: F401
            import tensorflow  # noqa: F401
        except KeyboardInterrupt:  # before any script could catch it
            os.write(stderr, b"interrupted\n")
            raise SystemExit(130) from None
        except BaseException:
            log.seek(0)
            os.write(stderr, log.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


_import_quietly()
