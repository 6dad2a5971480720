"""The run configuration: sections, parsing, automatic settings and the memory that a run needs.

Must not import torch or ray, or anything of cluster but settings, engines and wording.
"""
