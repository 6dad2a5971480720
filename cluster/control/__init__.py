"""Pure rules that the coordinator follows: pacing, model selection by evaluation, timeouts of roles.

Must not import engines' processes, torch or ray.
"""
