"""Wiring: configuration, engines, coordinator, run directory, metrics and the command line.

The only package that imports ray, and the only one that imports both actors and learner.
"""
