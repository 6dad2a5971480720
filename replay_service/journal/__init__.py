"""The journal of a shard: segment files on disk, written, made durable, read back.

Must not import the shard or the sampler.
"""
