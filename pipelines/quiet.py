"""What the local runners ask of the process: only warnings of ours and errors of the frameworks, and oneDNN."""

from __future__ import annotations

import logging
import os
import warnings

from quantizer_core.onednn import use_onednn


def quiet() -> None:
    """Silences TensorFlow, Beam and TFX in this process; to be called by a program before it imports them.

    Asks for oneDNN too: a Trainer that runs first would settle it.
    """
    use_onednn()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    for name in ("components", "quantizer_core"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
