"""The errors of environments: wrong settings, and failing for good.

Owns EnvError and EnvFailed; must not import anything.
"""


class EnvError(ValueError):
    """An environment cannot be used as configured; the message names the cure."""


class EnvFailed(RuntimeError):  # noqa: N818 - an outcome, told with the environment's own error
    """An environment that was made anew failed again before it had proved itself.

    The message begins with what it did: its own traceback where it raised.
    """
