"""What the queue's commands say in one line."""


class InputError(Exception):
    """Bad input: one line naming what was given and what is allowed. Commands print it and exit with 2."""


class RayUnavailableError(Exception):
    """Ray's job server does not answer; whatever was asked of it may or may not have happened."""
