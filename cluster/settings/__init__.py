"""The run configuration: sections, parsing, automatic settings, and the memory plan.

Must not import torch or ray, or anything of cluster but settings, engines and wording.
"""
