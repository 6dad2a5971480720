"""Targets, losses and their output gradients, all pure functions, and the heads that combine them.

Must not import networks, the update step or the loop.
"""
