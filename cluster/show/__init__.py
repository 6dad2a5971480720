"""What people look at: the terminal while a run goes on, status from elsewhere, the report afterwards.

Must not import ray or torch.
"""
