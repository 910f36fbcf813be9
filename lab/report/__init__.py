"""A run as one HTML file that needs nothing else, made from the JSON of the run alone."""

from wise.lab.report.page import write_report

__all__ = ["write_report"]
