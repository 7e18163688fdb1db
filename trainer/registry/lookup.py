"""The registry as the configuration asks it; MLflow is imported when it is asked, and not before."""

from functools import cache


@cache
def package_digest(name: str, alias: str, tracking_uri: str) -> str:
    """The digest of the package that the version with this alias has; asked once in a process.

    Raises:
        InputError: there is no such model, it says no digest, or the registry does not answer.
    """
    from trainer.registry.models import package_digest_of

    return package_digest_of(name, alias, tracking_uri)
