"""Records of a run: its directory, logs, events and TensorBoard files, and the server for Prometheus.

Must not import torch or ray.
"""
