"""The report: a page with charts and tables of recorded runs, and its charts as PNG files.

Must not import torch or ray.
"""
