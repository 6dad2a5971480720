"""The sharded replay service: blocks, codec, storage, priorities, exact sampling over shards.

Imports numpy and msgpack only; never gymnasium, torch, ray, actors, learner or cluster.
"""
