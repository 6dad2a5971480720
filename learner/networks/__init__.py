"""Networks: torsos and streams, their flat weights, and how their passes are computed.

Must not import objectives, the update step or the loop.
"""
