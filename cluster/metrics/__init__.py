"""Metrics of a run: counters that take every report, and immutable snapshots of them.

Must not import torch or ray.
"""
