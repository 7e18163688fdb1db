"""What the queue's commands say in one line."""


class InputError(Exception):
    """Bad input: one line naming what was given and what is allowed. Commands print it and exit with 2."""


class RayUnavailableError(Exception):
    """Ray's job server does not answer, or is in trouble; what was asked of it may or may not have happened."""


class RefusedError(Exception):
    """Ray answers that it will not take a job as it is."""


class StoreUnavailableError(Exception):
    """The queue's database does not take a change or a question now."""
