"""What is wrong with learning and what bounds the speed, concluded from snapshots. Pure.

Must not import torch, ray or any engine.
"""
