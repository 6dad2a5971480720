"""What a run writes: its directory, logs, events, TensorBoard files, and the endpoint for Prometheus.

Must not import torch or ray.
"""
