"""Processes and machines: one interface over direct calls and over Ray, and what a role's process is given.

The only folder that imports ray; must not import the coordinator or roles.
"""
