"""Processes and machines: one interface to direct calls and to Ray, and the resources of each process.

The only folder that imports ray; must not import the coordinator or roles.
"""
