"""Uses of learned weights: evaluation, export, video, and initial weights of another run.

Must not import ray.
"""
