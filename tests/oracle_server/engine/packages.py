"""PL/SQL packages: their documented signatures, and what their routines do.

Sources: DBMS_VECTOR in the AI Vector Search User's Guide, 26ai; the other packages in the PL/SQL
Packages and Types Reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oracle_server.statement import OraError

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

# types that PL/SQL converts by itself
_CONVERTED = {
    "VARCHAR2": {"VARCHAR2", "CLOB", "NUMBER", "TIMESTAMP"},
    "NUMBER": {"NUMBER", "VARCHAR2"},
    "BLOB": {"BLOB", "RAW"},
    "JSON": {"JSON"},
    "BOOLEAN": {"BOOLEAN"},
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a routine."""

    name: str
    type: str
    is_optional: bool = False

    def takes(self, given: str) -> bool:
        """Return whether a value of some type can be passed; NULL always can."""
        return given == "NULL" or given in _CONVERTED[self.type]


@dataclass(frozen=True)
class Routine:
    """A procedure or function.

    Attributes:
        overloads: Parameters of each overload.
        run: Called with the session and the arguments that were passed, by lower-case name.
        returns: Type of its result, of a function.
    """

    overloads: tuple[tuple[Parameter, ...], ...]
    run: Callable[[EngineSession, dict[str, Any]], Any]
    returns: str = ""

    def bind(self, positional: list[str], named: Mapping[str, str]) -> list[str] | None:
        """Match types of arguments; return the names of the positional ones, or None."""
        for overload in self.overloads:
            names = [parameter.name for parameter in overload]
            first = dict(zip(names, positional, strict=False))
            given = first | dict(named)
            fits = (
                len(positional) <= len(names)
                and not set(first) & set(named)
                and set(given) <= set(names)
                and all(p.is_optional or p.name in given for p in overload)
                and all(p.takes(given[p.name]) for p in overload if p.name in given)
            )
            if fits:
                return list(first)
        return None


def _parameters(text: str) -> tuple[Parameter, ...]:
    """Read ``name TYPE, name TYPE?``; the question mark stands for a default."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, kind = part.split()
        found.append(Parameter(name, kind.rstrip("?"), kind.endswith("?")))
    return tuple(found)


def _routine(run: Callable[..., Any], *overloads: str, returns: str = "") -> Routine:
    return Routine(tuple(_parameters(text) for text in overloads), run, returns)


def _load(session: EngineSession, given: dict[str, Any]) -> None:
    if "external_data_file_name" in given and given["external_data_file_name"] is not None:
        raise OraError(3001, "unimplemented feature: external data")
    if "metadata" in given and not isinstance(given["metadata"], dict):
        raise OraError(40102, "invalid input metadata for data mining operation: no JSON object")
    metadata = given.get("metadata")
    if "model_data" in given:
        session.models.load(given["model_name"], given["model_data"], metadata)
    else:
        session.models.load_file(
            given["directory"], given["file_name"], given["model_name"], metadata
        )


def _drop(session: EngineSession, given: dict[str, Any]) -> None:
    session.models.drop(given["model_name"], is_forced=bool(given.get("force")))


def _rename(session: EngineSession, given: dict[str, Any]) -> None:
    session.models.rename(
        given["model_name"], given["new_model_name"], given.get("versioned_model_name")
    )


def _set_module(session: EngineSession, given: dict[str, Any]) -> None:
    session.module, session.action = given["module_name"] or "", given["action_name"] or ""


def _set_action(session: EngineSession, given: dict[str, Any]) -> None:
    session.action = given["action_name"] or ""


def _set_client_info(session: EngineSession, given: dict[str, Any]) -> None:
    session.client_info = given["client_info"] or ""


_DROP = "model_name VARCHAR2, force BOOLEAN?"
ROUTINES: dict[str, Routine] = {
    "DBMS_VECTOR.LOAD_ONNX_MODEL": _routine(
        _load,
        "model_name VARCHAR2, model_data BLOB, metadata JSON?",
        "directory VARCHAR2, file_name VARCHAR2, model_name VARCHAR2, metadata JSON?, "
        "external_data_file_name VARCHAR2?",
    ),
    "DBMS_VECTOR.DROP_ONNX_MODEL": _routine(_drop, _DROP),
    "DBMS_DATA_MINING.DROP_MODEL": _routine(_drop, _DROP),
    "DBMS_DATA_MINING.RENAME_MODEL": _routine(
        _rename, "model_name VARCHAR2, new_model_name VARCHAR2, versioned_model_name VARCHAR2?"
    ),
    "DBMS_SESSION.UNIQUE_SESSION_ID": _routine(
        lambda session, _: session.unique_id, "", returns="VARCHAR2"
    ),
    "DBMS_SESSION.IS_SESSION_ALIVE": _routine(
        lambda session, given: given["uniqueid"] in session.database.alive,
        "uniqueid VARCHAR2",
        returns="BOOLEAN",
    ),
    "DBMS_SESSION.SLEEP": _routine(
        lambda session, given: session.wait(float(given["seconds"])), "seconds NUMBER"
    ),
    "DBMS_APPLICATION_INFO.SET_MODULE": _routine(
        _set_module, "module_name VARCHAR2, action_name VARCHAR2"
    ),
    "DBMS_APPLICATION_INFO.SET_ACTION": _routine(_set_action, "action_name VARCHAR2"),
    "DBMS_APPLICATION_INFO.SET_CLIENT_INFO": _routine(_set_client_info, "client_info VARCHAR2"),
    "DBMS_OUTPUT.PUT_LINE": _routine(
        lambda session, given: session.output.append(str(given["item"] or "")), "item VARCHAR2"
    ),
}


def find_routine(package: str, name: str, start: int = 0) -> Routine:
    """Return a routine.

    Raises:
        OraError: ORA-06550 with PLS-00201 or PLS-00302; its text begins with the PLS code.
    """
    if f"{package}.{name}" in ROUTINES:
        return ROUTINES[f"{package}.{name}"]
    if any(known.startswith(f"{package}.") for known in ROUTINES):
        raise OraError(6550, f"PLS-00302: component '{name}' must be declared", start)
    raise OraError(6550, f"PLS-00201: identifier '{package}.{name}' must be declared", start)
