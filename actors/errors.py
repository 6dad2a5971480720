"""The error of a wrong environment setting.

Owns EnvError; must not import anything.
"""


class EnvError(ValueError):
    """An environment cannot be used as configured; the message names the cure."""
