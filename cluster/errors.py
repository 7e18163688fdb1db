"""Errors that the queue's commands report in one line."""


class InputError(Exception):
    """Bad input: one line naming what was given and what is allowed. Commands print it and exit with 2."""


class NoQueueError(InputError):
    """There is no queue there."""


class RayUnavailableError(Exception):
    """Ray's job server does not answer, or fails; the request may or may not have taken effect."""


class RayFailedError(RayUnavailableError):
    """Ray's job server answers, and one request of it failed; others may not."""


class RefusedError(Exception):
    """Ray has rejected a job."""


class StoreUnavailableError(Exception):
    """The queue's database cannot be read or written now."""


class FilesUnavailableError(Exception):
    """The place of snapshots and logs cannot be read or written now."""


class DeposedError(Exception):
    """This dispatcher does not lead any more: it may change nothing, and ask nothing of Ray."""
