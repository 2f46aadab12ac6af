"""Reports that a person reads: one HTML file with pictures, figures and the decisions made."""

from offnominal.report.cards import Card, Outcome, Scores, write_page

__all__ = ["Card", "Outcome", "Scores", "write_page"]
