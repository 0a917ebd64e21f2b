"""Figures for papers, reports and notebooks: functions from data frames to Matplotlib figures, a
file a theme, and the report of a study.

What a figure shows is computed here or in `erl.statistics`, and tested on its data. Nothing here
trains an agent or writes to a study. Scripts load this room only when they are asked for figures.
"""

from erl.figures.style import attempt, caption_of, save

__all__ = ["attempt", "caption_of", "save"]
