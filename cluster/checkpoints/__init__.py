"""Checkpoints: taken while a run goes on, kept on disk, and resumed from.

Must not import ray or torch.
"""
