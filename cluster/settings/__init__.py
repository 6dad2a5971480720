"""The run configuration: sections, parsing, automatic choices and what a run will need.

Must not import torch or ray, or anything of cluster but settings, engines and wording.
"""
