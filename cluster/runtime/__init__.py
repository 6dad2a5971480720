"""Roles and the fleet: what engines spawn, the calls in flight to it, and pacing and evaluations over it.

Must not import ray.
"""
