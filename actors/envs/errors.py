"""The errors of environments: wrong settings, and repeated failure.

Owns EnvError and EnvFailed; must not import anything.
"""


class EnvError(ValueError):
    """An environment cannot be used as configured; the message names the cure."""


class EnvFailed(RuntimeError):  # noqa: N818 - an outcome, told with the environment's own error
    """An environment failed again soon after it had been restarted.

    The message begins with its own traceback if it raised, else with what was wrong.
    """
