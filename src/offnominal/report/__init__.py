"""Reports that a person reads: one HTML file with pictures, figures and the decisions made."""

from offnominal.report.page import Card, Scores, write_page

__all__ = ["Card", "Scores", "write_page"]
