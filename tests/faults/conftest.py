"""The table of the faults that were injected, at the end of the session."""

from __future__ import annotations

import pytest

ROWS = pytest.StashKey[list[tuple[str, int, int, int, float]]]()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Add a row to the table."""
    return Note(request.config.stash.setdefault(ROWS, []))


class Note:
    """Adds rows to the table at the end of the session."""

    def __init__(self, rows: list[tuple[str, int, int, int, float]]) -> None:
        self._rows = rows

    def __call__(
        self, fault: str, injected: int, lost: int, contradictory: int, error: float
    ) -> None:
        """Add a row: the fault, how often, and what became of the rounds."""
        self._rows.append((fault, injected, lost, contradictory, error))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("faults against real Flower processes")
    line = "{:<66} {:>8} {:>5} {:>9} {:>8}"
    terminalreporter.line(line.format("fault", "injected", "lost", "two ways", "error"))
    for fault, injected, lost, contradictory, error in sorted(rows):
        terminalreporter.line(
            line.format(fault, injected, lost, contradictory, f"{error:.0e}")
        )
    injected = sum(row[1] for row in rows)
    terminalreporter.line(
        f"{injected} faults; lost: rounds that were not reported, or were done again; "
        "two ways: rounds reported with two results; error: of any round's model "
        "against FedAvg's, relative"
    )
