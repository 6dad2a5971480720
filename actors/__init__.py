"""Acting: environments, exploration, n-step rows, the rollout and evaluation loops.

Imports numpy, gymnasium and replay_service; never torch, ray, learner or cluster.
"""
