"""
Every exception a user can act on.

A message names what is wrong, the value, the place, and the way out; it lists every offender. An
internal impossibility is an `assert` or a plain `ValueError`, never one of these.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class VlaqError(Exception):
    """Base of all errors that a user of this package can act on."""


class ConfigError(VlaqError):
    """A parameter or command line option is missing, unknown or out of range."""


class BundleError(VlaqError):
    """A bundle directory is missing, incomplete, altered or not understood."""


class SchemeError(VlaqError):
    """A quantization scheme does not exist or does not fit a tensor."""


class ImageError(VlaqError):
    """An image message cannot be decoded."""


class MessageError(VlaqError):
    """A message was received or read that cannot be used."""


class BagError(VlaqError):
    """A bag is missing, unreadable, or does not hold what it is read for."""


class StaleInputError(VlaqError):
    """A required input stream is missing or older than its age limit."""


class StaleChunkError(VlaqError):
    """No action of the current chunk is due now."""


class UnsafeActionError(VlaqError):
    """An action is not finite or breaks a limit; it was not executed."""


class PolicyError(VlaqError):
    """A policy cannot turn this observation into an action chunk."""


class SimulatorError(VlaqError):
    """The simulator cannot start, render or run the task asked for."""


class BringupError(VlaqError):
    """A node did not start, died, or did not answer in time."""


class MissingDependencyError(VlaqError):
    """A package or system library that this command needs is not installed."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist: what is known, and what may be meant."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    return f'no {what} named {name!r}. Known: {", ".join(known)}.{hint}'
