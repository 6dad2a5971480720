"""What a run measures: counters of every report, and one immutable snapshot of them.

Must not import torch or ray.
"""
