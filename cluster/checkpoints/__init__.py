"""One consistent cut of a run: when it is taken, how it lies on disk, and how a run goes on from it.

Must not import ray.
"""
