"""Where the measured data lies, for the tests of the loaders."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def measured_data() -> Path:
    """Return the folder that FLOWER_EXT_DATA names, else the one by the repository."""
    folder = Path(os.environ.get("FLOWER_EXT_DATA", BESIDE))
    if not folder.is_dir():
        pytest.skip(f"no measured data at {folder}; FLOWER_EXT_DATA can name a folder")
    return folder
