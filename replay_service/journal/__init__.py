"""The journal of a shard: segments on disk, made durable, recovered.

Must not import the shard or the sampler.
"""
