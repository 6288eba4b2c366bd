"""Comparing methods: a grid of runs by method and seed, and what it says."""

from .grid import Grid, run_grid
from .methods import METHOD_WORDS, Method, read_methods
from .results import write_results

__all__ = ["METHOD_WORDS", "Grid", "Method", "read_methods", "run_grid", "write_results"]
