"""How a test and the app talk: files in a folder that both can reach.

``events.jsonl`` is what happened, one line per event. A trap is a file that a test
sets: whoever runs into it first takes it, by renaming it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["Control"]

_LOOK_SECONDS = 0.05
_LONGEST_HOLD = 1800.0  # seconds; a test that forgets to let go must not hold for ever


class Control:
    """The folder.

    Parameters
    ----------
    folder : str | Path
        Where it is, absolute.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    # -- the app's side ----------------------------------------------------------------

    def tell(self, event: str, **values: Any) -> None:
        """Add an event; a line is written at once, whoever else writes."""
        line = json.dumps({"event": event, "pid": os.getpid(), **values}) + "\n"
        descriptor = os.open(
            self.folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644
        )
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def take(self, trap: str) -> str | None:
        """Take a trap if it is set and nobody has, and return what it says."""
        taken = self.folder / f"taken-{trap}"
        try:
            os.rename(self.folder / f"trap-{trap}", taken)
        except FileNotFoundError:
            return None
        return taken.read_text(encoding="utf-8")

    def hold(self, trap: str, **values: Any) -> str:
        """Wait in a trap, if it is set, until the test lets go.

        Returns
        -------
        str
            What the trap says; empty if this process has not been held.
        """
        says = self.take(trap)
        if says is None:
            return ""
        self.tell("held", trap=trap, **values)
        until = time.monotonic() + _LONGEST_HOLD
        while (self.folder / f"taken-{trap}").exists():
            if time.monotonic() > until:
                raise TimeoutError(f"Nobody has let go of {trap}.")
            time.sleep(_LOOK_SECONDS)
        return says

    # -- the test's side ---------------------------------------------------------------

    def set(self, trap: str, says: str = "") -> None:
        """Set a trap."""
        new = self.folder / f"new-{trap}"
        new.write_text(says, encoding="utf-8")
        os.rename(new, self.folder / f"trap-{trap}")

    def let_go(self, trap: str) -> None:
        """Let whoever is held in a trap go on."""
        (self.folder / f"taken-{trap}").unlink()

    def events(self, event: str | None = None, **values: Any) -> list[dict[str, Any]]:
        """Return the events so far that have these values, in order."""
        file = self.folder / "events.jsonl"
        if not file.exists():
            return []
        lines = file.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        return [
            e
            for e in found
            if (event is None or e["event"] == event)
            and all(e.get(name) == value for name, value in values.items())
        ]
