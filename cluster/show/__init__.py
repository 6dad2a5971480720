"""Terminal output: the live view of a run, and the status of a run that another process drives.

Must not import torch or ray.
"""
