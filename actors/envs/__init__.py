"""Environments: made, checked, guarded, and stepped as one stream whatever their autoreset mode.

Must not import anything of actors outside this folder but config and core.
"""
