"""Plan files: what `plan --out` saves, and whether it is still current."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from oml_mlflow._version import __version__
from oml_mlflow.documents import build, damaged, read_json
from oml_mlflow.errors import ConfigError, PlanStale
from oml_mlflow.files import keep_private
from oml_mlflow.planning.records import now, this_process
from oml_mlflow.promotion.options import Options
from oml_mlflow.reconciler.diff import Diff
from oml_mlflow.reconciler.status import Change

FORMAT_VERSION = 1
# target, name, version
Key = tuple[str, str, str]


@dataclass(frozen=True)
class SavedPlan:
    """Content of a plan file.

    Attributes:
        changes: Changes that are due now.
        waiting: Changes that are due once earlier targets have the version.
        options: Options that it was made with.
        target: The only target it covers; empty for all.
        models: The only registered models it covers; empty for all.
        made: Who made it, and when.
    """

    changes: tuple[Change, ...]
    waiting: tuple[Key, ...]
    options: Options
    target: str = ""
    models: tuple[str, ...] = ()
    made: str = ""

    @property
    def keys(self) -> set[Key]:
        """Keys of all changes, those that wait included."""
        return {change.key for change in self.changes} | set(self.waiting)

    def demand_fresh(self, plan: Diff) -> None:
        """Raise PlanStale if a plan made now differs from this one."""
        known, found = set(self.changes), set(plan.changes)
        moved = [f"no longer as planned: {change}" for change in sorted(known - found, key=str)]
        moved += [f"not planned: {change}" for change in sorted(found - known, key=str)]
        if set(waiting_in(plan)) != set(self.waiting):
            moved.append("other targets wait for those before them")
        if moved:
            raise PlanStale(
                f"the plan by {self.made} is stale: {'; '.join(moved)}. Nothing was changed.",
                hint="make it again: `oml-mlflow plan --out FILE`.",
                details={"moved": moved},
            )


def waiting_in(plan: Diff) -> tuple[Key, ...]:
    """Return the changes that are due once earlier targets have the version."""
    return tuple((s.target, s.name, s.wanted) for s in plan.statuses if s.waits_for)


def write_plan(
    path: Path, plan: Diff, options: Options, target: str, models: Collection[str]
) -> None:
    """Write a plan for `read_plan`, readable by its owner only. It holds no secrets.

    Raises:
        ConfigError: If the file can't be written.
    """
    document = {
        "format_version": FORMAT_VERSION,
        **plan.to_json(),
        "made": {"by": this_process(), "at": f"{now():%Y-%m-%d %H:%M:%S} UTC"},
        "oml_mlflow": __version__,
        "terms": asdict(options),  # the key's name in all plan files so far
        "target": target,
        "models": sorted(models),
        "waiting": waiting_in(plan),
    }
    with damaged(f"{path} can't be written", ConfigError, hint="name another file with --out."):
        keep_private(path)
        path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")


def read_plan(path: Path) -> SavedPlan:
    """Return a plan that `write_plan` wrote.

    Raises:
        ConfigError: If the file is no plan, or one of another format.
    """
    hint = "make one with `oml-mlflow plan --out FILE`."
    with damaged(f"{path} is no plan that this release wrote", ConfigError, hint=hint):
        stored = read_json(path)
        if stored["format_version"] not in (FORMAT_VERSION, "1.0"):
            raise ValueError("another format")
        return SavedPlan(
            changes=tuple(
                build(Change, status["change"])
                for status in stored["standings"]
                if status["change"] is not None
            ),
            waiting=tuple((t, n, v) for t, n, v in stored["waiting"]),
            # whatever else stands there, only true allows anything
            options=Options(
                **{f.name: stored["terms"].get(f.name) is True for f in fields(Options)}
            ),
            target=str(stored["target"]),
            models=tuple(map(str, stored["models"])),
            made=f"{stored['made']['by']} at {stored['made']['at']}",
        )
