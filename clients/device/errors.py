"""What may go wrong between a device and its server, as types that say whether trying again can help."""

from fl.core.errors import IdiolectError, StoreError


class UnreachableError(IdiolectError):
    """No answer after all attempts, or none that is of use now (busy, shutting down). Later may work; nothing is lost."""


class RefusedError(IdiolectError):
    """The server refused the request. ``status`` is HTTP's; ``slug`` is the end of the problem's type, or empty."""

    def __init__(self, message: str, status: int, slug: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.slug = slug


class LockedError(StoreError):
    """The key or passphrase is missing or is not the one that the device's files were encrypted with. They are intact."""


def unexpected(fault: str) -> RefusedError:
    """A good status with an answer that has a ``fault``, as ``is no JSON``: it does not come from such a server."""
    return RefusedError(f"the server's answer {fault}: is this the right address?", 200)
