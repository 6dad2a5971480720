"""Engines: one interface to run roles in this process or by Ray, and the resources of processes.

The only folder that imports ray; must not import the coordinator or roles.
"""
