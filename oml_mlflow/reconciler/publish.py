"""Write the results of changes to the registry, where people see them.

Each target keeps a note of what was last written about a name. So a later pass writes what could
not be written while the registry was unreachable, and nothing is written twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from oml_mlflow.errors import ERRORS_BY_CODE, ApplyError, OmlMlflowError, TargetError
from oml_mlflow.planning.columns import last_check
from oml_mlflow.planning.observed import Observed, Survey
from oml_mlflow.planning.records import FAILURE, PUBLISHED, LedgerEntry, Note, this_process
from oml_mlflow.publish.publication import Publication
from oml_mlflow.publish.version import publish, publish_all
from oml_mlflow.reconciler.diff import Diff
from oml_mlflow.reconciler.fleet import Fleet
from oml_mlflow.reconciler.status import Outcome, Status

_log = logging.getLogger(__name__)


def publish_outcomes(fleet: Fleet, diff: Diff, outcomes: Sequence[Outcome]) -> list[str]:
    """Write to the registry what is live where, and what failed.

    Args:
        fleet: The targets, which keep the notes.
        diff: State before the changes.
        outcomes: Results of the changes.

    Returns:
        What could not be written, for people.

    Side effects: Writes tags, descriptions and artifacts to the registry, notes to targets.
    """
    warnings: list[str] = []
    seen = {outcome.change.binding.place for outcome in outcomes}
    lives: list[LedgerEntry | None] = []
    publications: list[Publication] = []
    for outcome in outcomes:
        place = outcome.change.binding.place
        survey, observed = _observed(diff, place)
        lives.append(before := observed.live if observed else None)
        # a promotion that changed nothing replaced nothing
        changed = outcome.promotion is None or outcome.promotion.changed
        uri = survey.uri if survey else ""
        is_kept = fleet.open(place[0]).keep > 0
        before_it = before if changed else None
        publications.append(to_publication(outcome, uri, before_it, is_kept=is_kept))
    for outcome, before, told in zip(outcomes, lives, publish_all(publications), strict=True):
        warnings += told.warnings
        if told.is_settled:
            _note(fleet, outcome.change.binding.place, _after(outcome, before))
    for status in diff.statuses:
        place = (status.target, status.name)
        survey, observed = _observed(diff, place)
        if place in seen or status.binding is None or survey is None or observed is None:
            continue
        warnings += _catch_up(fleet, status, survey, observed)
    return warnings


def _catch_up(fleet: Fleet, status: Status, survey: Survey, observed: Observed) -> list[str]:
    """Write what an earlier pass, or a promotion by hand, could not."""
    live, failure, told = observed.live, observed.notes.get(FAILURE), observed.notes.get(PUBLISHED)
    known = dict(told.content) if told else {}
    place, checked = (status.target, status.name), last_check(observed)
    state = _state(live, failure) | ({"checked": checked} if checked else {})
    if state == known or not (live or failure):
        return []
    publications: list[Publication] = []
    is_new = any(state.get(key) != known.get(key) for key in ("generation", "checked"))
    if live is not None and live.version and is_new:
        publications.append(
            Publication(
                status.target,
                survey.uri,
                status.name,
                live.registered_model,
                live.version,
                entry=live,
                checked=checked,
            )
        )
    if failure is not None and state["failed"] and state["failed"] != known.get("failed"):
        tried = failure.content["tried"]
        publications.append(
            Publication(
                status.target,
                survey.uri,
                status.name,
                str(tried["model"]),
                str(tried["version"]),
                error=_said(failure),
                before=live,
            )
        )
    published = [publish(publication) for publication in publications]
    if all(one.is_settled for one in published):
        _note(fleet, place, state)
    return [warning for one in published for warning in one.warnings]


def _after(outcome: Outcome, before: LedgerEntry | None) -> dict[str, object]:
    entry = outcome.promotion.entry if outcome.promotion else before
    failed = outcome.change.version if outcome.error is not None else ""
    return {"generation": entry.generation if entry else 0, "failed": failed}


def _state(live: LedgerEntry | None, failure: Note | None) -> dict[str, object]:
    failed = str(failure.content["tried"]["version"]) if failure else ""
    return {"generation": live.generation if live else 0, "failed": failed}


def _said(failure: Note) -> OmlMlflowError:
    """Return the error that a note records."""
    kind = ERRORS_BY_CODE.get(str(failure.content.get("code")), ApplyError)
    return kind(str(failure.content.get("message")), hint=str(failure.content.get("hint")))


def _observed(diff: Diff, place: tuple[str, str]) -> tuple[Survey | None, Observed | None]:
    survey = diff.surveys.get(place[0])
    if not isinstance(survey, Survey):
        return None, None
    return survey, survey.names.get(place[1])


def _note(fleet: Fleet, place: tuple[str, str], state: dict[str, object]) -> None:
    target, name = place
    try:
        with fleet.open(target).session(f"note on {name}") as session:
            session.notes.write(Note(name, PUBLISHED, state, written_by=this_process()))
    except TargetError as error:
        _log.warning("%s on %s: what was published could not be noted: %s", name, target, error)


def to_publication(
    outcome: Outcome, uri: str, before: LedgerEntry | None, *, is_kept: bool = True
) -> Publication:
    """Return what is to be published of a change.

    Args:
        outcome: Result of the change.
        uri: `Target.uri` of the target.
        before: What was live before.
        is_kept: Whether that is still loaded if it was replaced.
    """
    change, done, error = outcome.change, outcome.promotion, outcome.error
    report = done.report if done else error.details.get("report") if error else None
    return Publication(
        target=change.binding.target,
        uri=uri,
        name=change.binding.name,
        model=change.binding.model,
        version=change.version,
        entry=done.entry if done else None,
        report=report,
        error=error,
        before=before,
        is_kept=is_kept,
    )
