"""The figures of the experiments, one module each; ``figures.py`` draws them."""

import os
import sys
from pathlib import Path

# The federation and the app, which are not installed.
_EXPERIMENTS = Path(__file__).parents[1]
sys.path[:0] = [str(_EXPERIMENTS / "two_stage_coded"), str(_EXPERIMENTS)]

# Before numpy and torch are imported: seeds are shared out over processes.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
