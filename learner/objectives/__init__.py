"""Targets, losses and their gradients by the outputs, all pure, and the heads that combine them.

Must not import networks, the update step or the loop.
"""
