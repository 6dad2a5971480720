"""Environments: making them, restarting them, and stepping them as one stream in any autoreset mode.

Must not import anything of actors outside this folder but config and core.
"""
