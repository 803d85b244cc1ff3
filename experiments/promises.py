"""Whether a promise is kept: a line for who reads, an entry for the file."""

from __future__ import annotations

__all__ = ["verdict"]


def verdict(
    what: str, figure: float, bar: float, *, least: bool = False
) -> dict[str, object]:
    """Print whether a promise is kept, and return it for the file.

    Parameters
    ----------
    what : str
        What was measured.
    figure, bar : float
        What came of it, and what is promised.
    least : bool (default: False)
        Whether the bar is the least that it may be; otherwise the most.
    """
    kept = figure >= bar if least else figure <= bar
    sign = "≥" if least else "≤"
    print(
        f"{'kept' if kept else 'missed'} {what}: {figure:.4g} ({sign} {bar:g})",
        flush=True,
    )
    return {"what": what, "figure": figure, "bar": bar, "kept": kept}
