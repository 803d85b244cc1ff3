"""Looking at a run: one page of HTML from the JSON files that an app has written.

The page has everything in it: it opens from a disk, and asks no network for anything.
It needs plotly and Jinja2: ``pip install "flower-ext[report]"``.
"""

from flower_ext.report.page import write_page
from flower_ext.report.results import FORMAT, Results, read_results

__all__ = ["FORMAT", "Results", "read_results", "write_page"]
