"""What a person sees on the terminal: the live view of a run, and its status from elsewhere.

Must not import torch or ray.
"""
