"""Every error that a user of Idiolect can cause, as a type.

A message names the cause and the remedy, because it is often the only thing a person reads.
Errors of our own making (a broken invariant) stay assertions; these classes are for input, files and networks.
"""


class IdiolectError(Exception):
    """Base of all errors that Idiolect raises on purpose. The command line prints its message and exits with 1."""


class ConfigError(IdiolectError):
    """A key, a value or a combination of settings that is not allowed. Names the key, the value and what is."""


class DemandError(ConfigError):
    """What a run asks of a device and its owner does not allow. The text names settings only, so it may leave the device."""


class ManifestError(IdiolectError):
    """A manifest line that cannot be used. The message starts with ``file:line:``."""


class CorpusError(IdiolectError):
    """A corpus that cannot be imported: audio missing, text in another encoding, an unknown speaker, ids twice, texts of the
    training set in the test set. Names the file and the line, and the option that helps."""


class PopulationError(IdiolectError):
    """A population in which a device id stands twice. Names the id and the places."""


class AudioError(IdiolectError):
    """Audio that is missing, unreadable, silent, too short or too long."""


class TooShortError(AudioError):
    """Audio that is too short to hold a word."""


class SilenceError(AudioError):
    """Audio in which nothing sounds, of so many ``seconds``. The file itself is as it should be."""

    def __init__(self, message: str, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds


class TextError(IdiolectError):
    """A transcript that cannot be a target: empty, or with nothing left after normalization."""


class VocabularyError(TextError):
    """Text with characters that a base's vocabulary lacks. Lists them with counts."""


class BaseModelError(IdiolectError):
    """A base model that cannot be resolved, verified or loaded."""


class AdapterError(IdiolectError):
    """An adapter that is malformed: wrong names, shapes, dtypes, non-finite values, too large, cannot be merged."""


class AdapterMismatchError(AdapterError):
    """A well-formed adapter that belongs to another base, configuration or split."""


class SplitError(IdiolectError):
    """A shared/private rule that is not disjoint and complete over the adapter's tensors."""


class GuardError(IdiolectError):
    """A message that would have carried something other than shared tensors and counts. Nothing was sent."""


class StoreError(IdiolectError):
    """Private state on a device's disk that cannot be read or written. What was stored before is intact."""


class MetricError(IdiolectError):
    """An unknown metric, or scores that cannot be formed from what was given."""


class AggregationError(IdiolectError):
    """Replies from which no aggregate can be formed. The state before the round is intact."""


class RunError(IdiolectError):
    """A run that failed, or a run folder that cannot be resumed or reported."""


class PackageError(IdiolectError):
    """A package of another project that Python finds instead of one of ours. Names its path and the remedy."""
