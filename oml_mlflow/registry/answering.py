"""What keeps MLflow from doing what it is asked, as our errors: the one place for it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from oml_mlflow.errors import RegistryError, RegistryRefused, RegistryUnreachable

NOTHING_CHANGED = "Nothing was changed."
_CHECK = "check what was asked for, and MLFLOW_TRACKING_URI."
_LOGIN = (
    "log in as a user who may do this, with MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or have an administrator of MLflow allow it."
)
# the cause within the text of an error of requests
_CAUSE = re.compile(r"\(Caused by \w+\(.*?\): (?P<why>[^\"]+)\"\)\)")
# MLflow keeps only texts of what it tried again, downloaded in threads, or got a page for
_STATUS = re.compile(r"\b(\d{3}) (?:error responses|(?:Client|Server) Error|!= \d)")
# in JSON of what stands before MLflow, whose status MLflow does not keep; and of databases
_REFUSED = re.compile(
    r"\b40[13]\b|unauthori[sz]ed|forbidden|denied|authentication failed|readonly database", re.I
)
# SQLAlchemy's texts hold it; to MLflow most errors of its database are bad requests
_OF_DATABASE = "sqlalche.me"


@contextlib.contextmanager
def answering(failed: str, *, state: str = NOTHING_CHANGED, hint: str = _CHECK) -> Iterator[None]:
    """Turn what MLflow raises into our errors; for calls of its stores only.

    Args:
        failed: What was not done then.
        state: What is left then.
        hint: The next step where MLflow is there, and does not take what it is asked.

    Raises:
        RegistryRefused: If it wants a login, or does not allow this to the user.
        RegistryUnreachable: If it does not answer, or not as a server in order would.
        RegistryError: If it is anything else.
    """
    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError) as error:
        text, status, where = str(error), _status(error), shown_registry()
        cause, told = _CAUSE.search(text), _STATUS.search(text)
        # a page may follow
        first = (text.partition(" Response body: ")[0].splitlines() or [type(error).__name__])[0]
        why = f"HTTP {told[1]}" if told else cause["why"] if cause else first[:300]
        kind, says = RegistryError, "says"
        if status in (401, 403):
            kind, says, hint = RegistryRefused, "refuses it", "let this user write there."
            if where.startswith(("http", "databricks")):
                hint = _LOGIN
        elif status in (408, 429) or status >= 500:
            kind, says = RegistryUnreachable, "does not answer as it should"
            hint = "check that the MLflow server runs, and MLFLOW_TRACKING_URI; then run it again."
        message = f"{failed}: the registry {where} {says}: {hidden(why)}. {state}"
        raise kind(message.rstrip(), hint=hint) from error


def fetching(uri: str) -> contextlib.AbstractContextManager[None]:
    """Return `answering` for a download."""
    hint = "check that its artifacts are still in the artifact store."
    return answering(f"the files of {hidden(uri)} can't be fetched", hint=hint)


@contextlib.contextmanager
def started_run(name: str | None = None) -> Iterator[mlflow.ActiveRun]:
    """Work in a run, as `mlflow.start_run` does; errors of the block go before those of its end."""
    with answering("no run was started"):
        run = mlflow.start_run(run_name=name)
    try:
        yield run
    except BaseException:
        with contextlib.suppress(MlflowException):
            mlflow.end_run("FAILED")
        raise
    with answering(f"run {run.info.run_id} was not ended", state="What it logged is there."):
        mlflow.end_run()


def shown_registry() -> str:
    """Return the address of the registry, without a password."""
    return hidden(mlflow.get_registry_uri())


def hidden(text: str) -> str:
    """Return a text without the users and passwords of its URLs."""
    return re.sub(r"//[^/\s]*@", "//***@", text)


def _status(error: Exception) -> int:
    """Return the HTTP status that an error of MLflow's stores is worth."""
    text = str(error)
    if _OF_DATABASE in text:
        return 403 if _REFUSED.search(text.partition("\n")[0]) else 503
    if (answer := getattr(error, "response", None)) is not None:
        return int(answer.status_code)
    # a page instead of an answer: MLflow is not there
    if getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND":
        return 503
    if told := _STATUS.search(text):
        return int(told[1])
    if isinstance(error, MlflowException):
        body = getattr(error, "json", {})
        is_refused = "error_code" not in body and _REFUSED.search(str(body))
        return 403 if is_refused else int(error.get_http_status_code())
    # only the system's own errors, such as of a local folder, have a number
    is_local = getattr(error, "errno", None) and not isinstance(error, ConnectionError)
    return 400 if is_local else 503
