"""Wiring: configuration, engines, coordinator, run directory, metrics and the command line.

The only package that imports both actors and learner, and, in `engines`, the only one that imports ray.
"""

__version__ = "0.1.0"
