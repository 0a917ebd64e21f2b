"""Evolving neural structure around learning agents."""

__version__ = "0.2.0"
