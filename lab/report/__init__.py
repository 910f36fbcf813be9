"""Pages that a person reads: one run, or one trace, as a single HTML file that needs nothing else.

Everything comes from the JSON alone, so a page can be made anywhere and long after the run. Charts are SVG written
here: they follow the reader's light or dark theme, and nothing is loaded from anywhere.
"""

from wise.lab.report.heatmap import heat_map
from wise.lab.report.page import write_locate_report, write_report

__all__ = ["heat_map", "write_locate_report", "write_report"]
