"""The report: recorded runs read back, grouped, drawn as charts and put into one page.

Must not import torch or ray.
"""
