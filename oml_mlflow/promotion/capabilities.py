"""Capability probes: what a database can run, and the profile that fits it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from oml_mlflow.errors import (
    CapabilityMissing,
    ForeignModel,
    LoginRefused,
    ModelTooSlow,
    PrivilegeError,
    QuotaExceeded,
    TargetError,
    TargetLocked,
    TargetUnreachable,
    TargetUnsupported,
)
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.graph.needs import (
    ANTIALIAS,
    BYTES,
    INPUT,
    INTEGER,
    OPERATOR,
    STRING,
    Capability,
    needs,
)
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.planning.capabilities import Answer, CapabilityTable
from oml_mlflow.planning.records import LoadedModel, now
from oml_mlflow.promotion.target import Session

SCRATCH_PREFIX = "OML_MLFLOW_PROBE_"
_SCRATCH = re.compile(rf"{SCRATCH_PREFIX}\d+")
# errors that say nothing about what a database can run
_NO_ANSWER = (
    ForeignModel,
    LoginRefused,
    ModelTooSlow,
    PrivilegeError,
    QuotaExceeded,
    TargetLocked,
    TargetUnreachable,
    TargetUnsupported,
)

_log = logging.getLogger(__name__)

# locked while capability probes run, since all runs use the same scratch names
PROBE_LOCK = "OML_MLFLOW_PROBE"


def probe_capabilities(
    session: Session, needs: Sequence[Capability], on_event: Listener = silent
) -> CapabilityTable:
    """Ask a database for capabilities, each with a model of a few kilobytes.

    Each is loaded under a scratch name, embeds one value, and is dropped in any case; what an
    earlier run left is dropped first. No model or value is known to crash any release of
    onnxruntime-extensions. An error that says nothing about a capability, such as a missing
    privilege, is no answer: then the rest is not asked.

    Args:
        session: The database. No other process may be probing it under the same user.
        needs: What to ask for.
        on_event: Told of progress.

    Returns:
        The answers, with earlier ones of the same database version.

    Raises:
        TargetUnreachable: If the database is lost meanwhile; no answers are kept.

    Side effects: Writes scratch models, drops them, and keeps the answers; commits.
    """
    _drop_leftovers(session)
    before = session.capabilities()
    kept: dict[Capability, Answer] = {}
    if before is not None and before.database_version == session.version:
        kept = {answer.capability: answer for answer in before.rows}
    asked, obstacle = tuple(dict.fromkeys(needs)), None
    for number, capability in enumerate(asked, 1):
        if obstacle is None:
            try:
                kept[capability] = _ask(session, capability, f"{SCRATCH_PREFIX}{number}")
            except TargetUnreachable:
                raise
            except _NO_ANSWER as error:
                _log.warning("capability probes stopped: %s", error)
                obstacle = error
        if obstacle is not None and capability not in kept:
            kept[capability] = Answer(capability, None, f"not run: {obstacle.message}")
        on_event(Event("probe", "capabilities", number, len(asked), "probes"))
    table = CapabilityTable(tuple(kept.values()), now(), session.version)
    session.save_capabilities(table)
    return table


def choose_profile(
    stored: Mapping[str, Sequence[Capability]],
    ranked: Sequence[str],
    table: CapabilityTable | None,
) -> str:
    """Return the best stored profile of whose needs the database refused none.

    Args:
        stored: What the pair of each profile needs.
        ranked: Names of profiles, best first; at least one.
        table: What the database answered; None if it was never asked.

    Raises:
        CapabilityMissing: If it refused something to each; names what, and the command that makes
            a pair without it.
    """
    refusals = {name: table.missing(stored[name]) if table else [] for name in ranked}
    for name in ranked:
        if not refusals[name]:
            return name
    told = [
        f"the pair for {name} needs {' and '.join(str(answer) for answer in answers)}"
        for name, answers in refusals.items()
    ]
    rows = [
        {"profile": name, "needs": str(answer.capability), "message": answer.message}
        for name, answers in refusals.items()
        for answer in answers
    ]
    raise CapabilityMissing(
        f"the database, version {table.database_version if table else 'unknown'}, can run none of "
        f"the stored pairs: {'; '.join(told)}. Nothing was loaded.",
        hint=next_command([answer for answers in refusals.values() for answer in answers]),
        details={"refused": rows},
    )


def next_command(refused: Sequence[Answer]) -> str:
    """Return the command that makes a pair without what was refused, if there is one."""
    kinds = {answer.capability.kind for answer in refused}
    decoders = [
        a.capability.operator
        for a in refused
        if a.capability.kind == OPERATOR and a.capability.input == BYTES
    ]
    if decoders:
        return (
            f"log a pair with the database's own decode operator instead of {decoders[0]}: "
            "`oml-mlflow log IMG TXT --register NAME --profile oracle-23.7 --profile "
            "oracle-23.7+DOMAIN.NAME` (`oml-mlflow export MODEL NAME --decode-op DOMAIN:NAME` "
            "makes one alone), and promote that version."
        )
    if INTEGER in kinds:
        return (
            "export it with INT8 weights that are computed in float32 (`oml-mlflow export MODEL "
            "NAME --quantize-model`), log that pair, and promote it."
        )
    if kinds & {OPERATOR, ANTIALIAS, INPUT}:
        return (
            "log a pair for another profile too (`oml-mlflow log IMG TXT --register NAME --profile "
            "oracle-23.7`), or use a newer database; then ask again with `oml-mlflow preflight "
            "--probe`."
        )
    return "ask again with `oml-mlflow preflight --probe`."


def _ask(session: Session, capability: Capability, name: str) -> Answer:
    """Return the answer to one probe; raise errors that are no answer."""
    from oml_mlflow.graph.probe_models import probe_model

    probe = probe_model(capability)
    if probe is None:
        return Answer(capability, None, "not run: only loading the pair itself can tell")
    side = TXT if capability.input == STRING else IMG
    model = LoadedModel(
        name=name,
        side=side,
        fingerprint=hashlib.sha256(probe.data).hexdigest(),
        dims=probe.dims,
        size_bytes=len(probe.data),
        # an origin, though an empty one, so that the catalogue knows it as ours
        metadata={
            "registered_model": "",
            "version": "",
            "run_id": "",
            "ends": {"input": "input", "output": "embedding"},
            "unknown_operators": [],
            "capability": str(capability),
        },
        loaded_at=now(),
    )
    try:
        with tempfile.TemporaryDirectory(prefix="oml_mlflow_") as folder:
            path = Path(folder) / "probe.onnx"
            path.write_bytes(probe.data)
            session.models.load(model, path)
        vector = session.models.embed(name, side, [probe.value])[0]
    except _NO_ANSWER:
        raise
    except TargetError as error:
        return Answer(capability, False, error.message)
    finally:
        # must not hide the error being raised; the next run drops a leftover
        with contextlib.suppress(TargetError):
            session.models.drop([name])
    wrong = probe.judge(vector)
    return Answer(capability, not wrong, wrong)


def _drop_leftovers(session: Session) -> None:
    names = [m.name for m in session.models.list() if _SCRATCH.fullmatch(m.name)]
    if names:
        _log.warning("dropping %s, which an earlier run left", ", ".join(names))
        session.models.drop(names)


def pair_needs(paths: Mapping[str, Path]) -> tuple[Capability, ...]:
    """Return what both pipelines of a pair need of a database. Read-only."""
    found = [need for side in SIDES for need in needs(paths[side])]
    return tuple(dict.fromkeys(found))


def ask(
    session: Session,
    wanted: Sequence[tuple[Capability, ...]],
    on_event: Listener = silent,
    *,
    again: bool = False,
) -> CapabilityTable:
    """Return the answers to capability probes; run them if one is missing or outdated, or `again`.

    Side effects: Writes scratch models, drops them again, and keeps the answers; commits.
    """
    table = session.capabilities()
    every = tuple(dict.fromkeys(need for needed in wanted for need in needed))
    if (
        table is not None
        and not again
        and table.database_version == session.version
        and not table.unanswered(need for need in every if need.has_probe)
    ):
        return table
    with session.lock(PROBE_LOCK, "capability probes"):
        return probe_capabilities(session, every, on_event)
