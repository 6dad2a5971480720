"""Uses of learned weights: evaluation, export, video, and the start of another run.

Must not import ray.
"""
