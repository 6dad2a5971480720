"""The report: recorded runs are read, grouped, and shown by charts and tables on one page.

Must not import torch or ray.
"""
