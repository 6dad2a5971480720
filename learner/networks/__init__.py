"""Networks: torsos, streams, flat weights and their products.

Must not import objectives, the update step or the loop.
"""
