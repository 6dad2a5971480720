"""Learning: networks, targets, losses, the update step and the learning loop.

Imports torch, numpy and replay_service; never gymnasium, ray, actors or cluster.
"""
