"""What is done with learned weights: evaluation, export, video, beginning another run with them.

Must not import ray.
"""
