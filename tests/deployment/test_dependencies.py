"""What a SuperLink that installs an app's dependencies makes of flower-ext."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flower_ext.deployment import LocalFederation
from tests.deployment.lists_flower_ext import write_app

pytestmark = pytest.mark.faults

THERE_ALREADY = '\n[tool.uv]\nexclude-dependencies = ["flwr", "flower-ext"]\n'


@pytest.fixture(scope="module")
def installing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Return a federation that installs dependencies, and reaches no index."""
    with LocalFederation(
        tmp_path_factory.mktemp("federation"),
        1,
        superlink_options=(),
        environment={"UV_OFFLINE": "1"},
    ) as federation:
        yield federation


def test_an_app_that_lists_flower_ext_fails_and_says_so(
    installing: LocalFederation, tmp_path: Path
) -> None:
    result = installing.run(write_app(tmp_path / "app"), stream=False)

    assert result.status == "finished:failed"
    assert "flower-ext was not found" in result.log + result.details
    assert "Exit Code: 608" in result.log + installing.log("superlink")


def test_an_app_that_says_what_is_there_starts_at_once(
    installing: LocalFederation, tmp_path: Path
) -> None:
    result = installing.run(write_app(tmp_path / "app", THERE_ALREADY), stream=False)

    assert "found Uncoded" in result.require_completed().log
