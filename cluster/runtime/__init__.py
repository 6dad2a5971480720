"""The run itself: roles, the fleet of them, and the coordinator that grants work and takes reports.

Owns pacing and the judging of evaluations; must not import ray.
"""
