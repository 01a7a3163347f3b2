"""What a library finds in its process and must leave there: seeds, policies, threads, environment and so on."""

import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from threadpoolctl import threadpool_info


def host_state():
    """The settings of this process that belong to everybody in it, by name; values that can be compared."""
    keras = sys.modules.get("keras")
    loggers = [logging.getLogger(), *(x for x in logging.Logger.manager.loggerDict.values() if hasattr(x, "level"))]
    return {
        "TensorFlow": "tensorflow" in sys.modules,
        "random": random.getstate(),
        "numpy.random": np.random.get_state()[1].tobytes(),  # noqa: NPY002
        "numpy errors": np.geterr(),
        "BLAS threads": {library["filepath"]: library["num_threads"] for library in threadpool_info()},
        "OpenCV threads": cv2.getNumThreads(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "warnings": list(warnings.filters),
        "loggers": {logger.name: (logger.level, logger.disabled, tuple(logger.handlers)) for logger in loggers},
        "import hooks": list(sys.meta_path),
        "exception hook": sys.excepthook,
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "Matplotlib": {k: v for k, v in matplotlib.rcParams.copy().items() if k != "backend"},
        "Matplotlib's backend": matplotlib.get_backend(auto_select=False),
        "Keras policy": keras.config.dtype_policy().name if keras else "float32",
        "Keras floats": keras.config.floatx() if keras else "float32",
        "Keras distribution": keras.distribution.distribution() if keras else None,
    }


IMPORTED = {"numpy.random", "environment", "import hooks"}  # what importing TensorFlow changes


def changes(before, after, but=()):
    """What is not as it was, by name, `but` for what is not looked at.

    What was imported in between may add libraries, loggers and warning filters; TensorFlow changes what is in IMPORTED.
    """
    found, but = {}, {*but, *(IMPORTED if after["TensorFlow"] and not before["TensorFlow"] else ())}
    for name, was in before.items():
        now = after[name]
        if name in ("BLAS threads", "loggers"):
            now = {key: value for key, value in now.items() if key in was}
        if name == "warnings":
            now = [each for each in now if each in was]
        if name == "Matplotlib's backend" and was is None:  # chosen with the first figure
            continue
        if now != was and name not in {*but, "TensorFlow"}:
            found[name] = (was, now)
    return found
