"""Diagnosis from snapshots: failures of learning, and the stage that limits the speed. Pure.

Must not import torch, ray or any engine.
"""
