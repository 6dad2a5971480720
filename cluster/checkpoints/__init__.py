"""One consistent checkpoint of a living run: taken, kept, resumed.

Must not import ray or torch.
"""
