"""Acting: environments, exploration, n-step transitions, the rollout and evaluation loops.

Imports numpy, gymnasium and replay_service; never torch, ray, learner or cluster.
"""
