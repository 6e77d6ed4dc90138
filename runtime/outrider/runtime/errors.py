"""Every error that Outrider raises on purpose, in one tree, each with its exit code.

```
OutriderError
├── BadInputError                 1   what was given is wrong
│   ├── BadModelError                 a model that cannot be read, or holds nothing to compile
│   ├── BadDataError                  arrays, frames or rows of the wrong name, dtype or shape
│   ├── BadRecipeError                a recipe with an unknown key or value
│   ├── BadConfigError                a device or fleet configuration that cannot be used
│   ├── BadMessageError               an MQTT or HTTP payload that does not decode
│   ├── BadBundleError                a bundle that must not be loaded
│   │   ├── UnknownSchemaError            written by a newer or foreign version
│   │   ├── MissingFileError              the manifest names a file that is not there
│   │   ├── ExtraFileError                the archive holds a file that the manifest does not name
│   │   ├── DigestMismatchError           bytes differ from the recorded SHA-256
│   │   ├── UnsafePathError               an entry that would leave the bundle
│   │   └── BundleTooLargeError           sizes beyond the limits, or a zip bomb
│   ├── TrustError                    a signature that does not hold
│   │   ├── UnsignedError                 no signature where one is required
│   │   ├── BadSignatureError             signed, but the signature does not verify
│   │   └── UnknownKeyError               signed by a key that is not trusted for this
│   ├── StaleRevisionError            a desired document that is older than the applied one
│   ├── NotFoundError                 a named thing does not exist
│   ├── ConflictError                 a thing already exists, or is in another state
│   └── PortInUseError                a listener's address is taken
├── UsageError                    2   a command that cannot be parsed
├── GoalUnmetError                3   no candidate meets the stated goals
├── UnsupportedError              4   an operator or model that is outside what is supported
├── TargetMismatchError           5   the bundle cannot run on this target
│   └── EngineMissingError            the engine's package is not installed
├── ParityError                   6   the compiled artifact disagrees with its source model
└── Fault                        70   not the user's doing
    ├── StorageError                  the disk failed
    │   └── StorageFullError              the disk is full
    ├── UnavailableError              a broker or server does not answer
    ├── ApiError                      the fleet's API refused for a reason of its own
    ├── EngineFault                   an engine failed while running an artifact
    └── ToolchainError                the cross compiler failed
```

Foreign exceptions are wrapped at the seam where they appear, with `raise ... from e`.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_INTERRUPTED = 130


class OutriderError(Exception):
    """Something went wrong.

    The docstring's first line is the default message. `hint` says what to do about it.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[OutriderError], message: str, hint: str | None) -> OutriderError:
    return kind(message, hint=hint)


class BadInputError(OutriderError):
    """The input cannot be used."""

    exit_code = 1


class BadModelError(BadInputError):
    """The model cannot be read."""


class BadDataError(BadInputError):
    """The data does not fit the model's signature."""


class BadRecipeError(BadInputError):
    """The recipe cannot be used."""


class BadConfigError(BadInputError):
    """The configuration cannot be used."""


class BadMessageError(BadInputError):
    """The message does not decode."""


class BadBundleError(BadInputError):
    """The bundle cannot be read."""


class UnknownSchemaError(BadBundleError):
    """The bundle's schema version is not known to this release."""


class MissingFileError(BadBundleError):
    """The bundle lacks a file that its manifest names."""


class ExtraFileError(BadBundleError):
    """The bundle holds a file that its manifest does not name."""


class DigestMismatchError(BadBundleError):
    """The bytes differ from the recorded SHA-256."""


class UnsafePathError(BadBundleError):
    """The bundle holds an entry whose path is unsafe."""


class BundleTooLargeError(BadBundleError):
    """The bundle is larger than the limits allow."""


class TrustError(BadInputError):
    """The signature does not hold."""


class UnsignedError(TrustError):
    """There is no signature where one is required."""


class BadSignatureError(TrustError):
    """The signature does not verify."""


class UnknownKeyError(TrustError):
    """The signing key is not trusted for this purpose."""


class StaleRevisionError(BadInputError):
    """The desired document is older than the one already applied."""


class NotFoundError(BadInputError):
    """There is no such thing."""


class ConflictError(BadInputError):
    """It already exists, or is in another state."""


class PortInUseError(BadInputError):
    """The port is already in use."""


class UsageError(OutriderError):
    """The command cannot be parsed."""

    exit_code = 2


class GoalUnmetError(OutriderError):
    """No candidate meets the stated goals.

    `kept` is the path of a bundle of the candidate that comes closest, marked as one that misses them, and `table` says
    as text what became of every candidate; None and empty where the error comes from elsewhere than a compile.
    """

    exit_code = 3

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, kept: str | None = None, table: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.kept, self.table = kept, table


class UnsupportedError(OutriderError):
    """The model uses something that is not supported."""

    exit_code = 4


class TargetMismatchError(OutriderError):
    """The bundle cannot run on this target.

    `reason` is machine-readable (see `outrider.runtime.target.Refusal`).
    """

    exit_code = 5

    def __init__(self, message: str | None = None, *, hint: str | None = None, reason: str = "target") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class EngineMissingError(TargetMismatchError):
    """The engine that runs this artifact is not installed."""


class ParityError(OutriderError):
    """The compiled artifact disagrees with its source model."""

    exit_code = 6


class Fault(OutriderError):
    """Something failed that is not the user's doing."""

    exit_code = 70


class StorageError(Fault):
    """The disk failed."""


class StorageFullError(StorageError):
    """The disk is full."""


class UnavailableError(Fault):
    """The other side does not answer."""


class ApiError(Fault):
    """The fleet's API refused the request."""


class EngineFault(Fault):
    """The engine failed while running an artifact."""


class ToolchainError(Fault):
    """The cross compiler failed."""
