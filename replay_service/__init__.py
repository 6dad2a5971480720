"""The sharded replay service: blocks, codec, storage, priorities, exact sampling over shards.

Imports numpy, msgpack and, where frames are compressed, lz4; never gymnasium, torch, ray, actors, learner
or cluster.
"""
