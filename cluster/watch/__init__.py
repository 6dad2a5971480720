"""What is known of a run: figures, metrics, diagnosis of learning and of speed, logs.

Nothing here changes what a run does; must not import ray or torch.
"""
