"""Errors, their stable codes and exit codes.

Every error says what failed, on what, what state it left, and what to do next::

    OmlMlflowError                      exit
     +-- ConfigError                    1     config-invalid
     +-- InvalidName                    1     name-invalid
     +-- SourceError                    1     source-unavailable
     |    +-- UnsupportedSource         1     source-unsupported
     +-- ExportError                    1     export-failed
     |    +-- NameTaken                 1     name-taken
     +-- InputError                     1     input-invalid
     +-- GraphError                     1     graph-rejected
     +-- PackageError                   1     package-corrupt
     |    +-- IncompatiblePackage       1     package-incompatible
     +-- RegistryError                  1     registry-lookup-failed
     |    +-- RegistryUnreachable       75    registry-unreachable
     |    +-- RegistryRefused           1     registry-refused
     |    +-- OtherRegistry             1     registry-other
     +-- OtherOwner                     1     owner-other
     +-- NotAccepted                    1     binding-refused
     +-- Pinned                         1     name-pinned
     +-- Vetoed                         1     hook-veto
     +-- WebhookRejected                1     webhook-rejected
     +-- TargetError                    1     target-failed
     |    +-- TargetLocked              75    target-locked
     |    +-- TargetUnreachable         75    target-unreachable
     |    +-- LoginRefused              1     login-refused
     |    +-- TargetUnsupported         1     target-unsupported
     |    +-- SchemaNewer               1     schema-newer
     |    +-- PrivilegeError            1     privilege-missing
     |    +-- QuotaExceeded             1     quota-exceeded
     |    +-- ModelRefused              1     model-refused
     |    |    +-- ModelTooSlow         1     model-too-slow
     |    +-- ForeignModel              1     model-foreign
     +-- PreflightError                 1     preflight-failed
     |    +-- CapabilityMissing         1     capability-missing
     +-- PlanStale                      75    plan-stale
     +-- GeometryChanged                1     geometry-changed
     +-- ApplyError                     1     apply-failed
     +-- ParityError                    3     parity-failed
     +-- OutputError                    74    output-failed

The base class is free of MLflow, whose import takes seconds; the flavor re-raises as
``MlflowException`` with the original as its cause.
"""

from __future__ import annotations

from typing import Any, ClassVar

ERRORS_BY_CODE: dict[str, type[OmlMlflowError]] = {}


class OmlMlflowError(Exception):
    """Base of all errors: what failed, the state that was left, and the next step.

    Args:
        message: What failed and on what; got against wanted; the state that was left.
        hint: What to do next, one command where possible.
        details: Values for a program to read. Never secrets.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init_subclass__(cls, code: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.code = code
        ERRORS_BY_CODE[code] = cls

    def __init__(
        self, message: str, *, hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.details)

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        stop = "" if self.message.endswith((".", "!", "?")) else "."
        return f"{self.message}{stop} Next: {self.hint}"


def _rebuild(
    cls: type[OmlMlflowError], message: str, hint: str, details: dict[str, Any]
) -> OmlMlflowError:
    return cls(message, hint=hint, details=details)


class ConfigError(OmlMlflowError, code="config-invalid"):
    """A setting, a target URI or a configuration property is not usable."""


class InvalidName(OmlMlflowError, code="name-invalid"):
    """An export name can't be the name of an in-database model."""


class SourceError(OmlMlflowError, code="source-unavailable"):
    """A model folder or hub repository can't be read in full."""


class UnsupportedSource(SourceError, code="source-unsupported"):
    """The model is readable, but no pipeline here can express it."""


class ExportError(OmlMlflowError, code="export-failed"):
    """A pipeline pair could not be written; nothing was left behind."""


class NameTaken(ExportError, code="name-taken"):
    """A file of that name is already there; it was not touched."""


class GraphError(OmlMlflowError, code="graph-rejected"):
    """A graph has something that its target does not accept."""


class InputError(OmlMlflowError, code="input-invalid"):
    """A picture or text can't be embedded."""


class PackageError(OmlMlflowError, code="package-corrupt"):
    """A packaged pair differs from what its MLmodel file says."""


class IncompatiblePackage(PackageError, code="package-incompatible"):
    """A packaged pair was written in a format that this release can't read."""


class RegistryError(OmlMlflowError, code="registry-lookup-failed"):
    """A registered model, version or alias was not found, or the registry does not take this."""


class RegistryUnreachable(RegistryError, code="registry-unreachable"):
    """The registry does not answer, or answers with an error of its own."""

    exit_code = 75
    retryable = True


class RegistryRefused(RegistryError, code="registry-refused"):
    """The registry asks for a login, or does not allow this to the user."""


class OtherRegistry(RegistryError, code="registry-other"):
    """The registry is empty, or not the one that the ledgers name; nothing was changed."""


class OtherOwner(OmlMlflowError, code="owner-other"):
    """A name belongs to another registered model, or to a model of another registry."""


class NotAccepted(OmlMlflowError, code="binding-refused"):
    """A target does not accept this model, alias or name, or the name is bound twice."""


class Pinned(OmlMlflowError, code="name-pinned"):
    """A name is pinned: it stays as it is until it is unpinned."""


class Vetoed(OmlMlflowError, code="hook-veto"):
    """A hook stopped a promotion; the live pair is as it was."""


class WebhookRejected(OmlMlflowError, code="webhook-rejected"):
    """A delivery is not one of ours; nothing was done."""


class TargetError(OmlMlflowError, code="target-failed"):
    """A database refused a step."""


class TargetLocked(TargetError, code="target-locked"):
    """Another process holds the database; the message names it."""

    exit_code = 75
    retryable = True


class TargetUnreachable(TargetError, code="target-unreachable"):
    """A database can't be reached, the connection was lost, or a call took too long."""

    exit_code = 75
    retryable = True


class LoginRefused(TargetError, code="login-refused"):
    """A database refuses the user or the password."""


class TargetUnsupported(TargetError, code="target-unsupported"):
    """A database has a version that can't hold pipelines."""


class SchemaNewer(TargetError, code="schema-newer"):
    """A target's tables were written by a newer release; nothing was read or changed."""


class PrivilegeError(TargetError, code="privilege-missing"):
    """A database user may not do what is needed; the hint holds the GRANT."""


class QuotaExceeded(TargetError, code="quota-exceeded"):
    """A database user has no room for what is to be loaded."""


class ModelRefused(TargetError, code="model-refused"):
    """A database refuses a graph, or can't run it."""


class ModelTooSlow(ModelRefused, code="model-too-slow"):
    """A loaded model gave no vector in a time that is ample; the call was given up."""


class ForeignModel(TargetError, code="model-foreign"):
    """A name is taken by a model that this package did not load; it was not touched."""


class PreflightError(OmlMlflowError, code="preflight-failed"):
    """A check before a promotion failed; nothing was loaded."""


class CapabilityMissing(PreflightError, code="capability-missing"):
    """A database can't run any of the pairs that a version holds; nothing was loaded."""


class PlanStale(OmlMlflowError, code="plan-stale"):
    """Somebody else changed what is live meanwhile; nothing was changed."""

    exit_code = 75
    retryable = True


class GeometryChanged(OmlMlflowError, code="geometry-changed"):
    """A version's vectors can't be compared with those stored from the live one."""


class ApplyError(OmlMlflowError, code="apply-failed"):
    """A promotion stopped; the live pair is as it was."""


class OutputError(OmlMlflowError, code="output-failed"):
    """What was asked for was done, but what tells of it could not be written."""

    exit_code = 74


class ParityError(OmlMlflowError, code="parity-failed"):
    """Vectors differ from their references by more than the limit."""

    exit_code = 3
