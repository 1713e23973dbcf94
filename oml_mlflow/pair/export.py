"""Export a model as a pipeline pair on disk: both files, or none."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from oml_mlflow.errors import ConfigError, ExportError, GraphError, NameTaken
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.graph.cut import INPUT_IDS, PIXEL_VALUES
from oml_mlflow.graph.image import image_pipeline
from oml_mlflow.graph.precision import choose_precisions, read_precisions
from oml_mlflow.graph.profiles import DEFAULT_PROFILE, PROFILES, Profile
from oml_mlflow.graph.retarget import side_metadata
from oml_mlflow.graph.rules import check_file
from oml_mlflow.graph.shrink import estimated_size_bytes, shrink
from oml_mlflow.graph.text import text_pipeline
from oml_mlflow.graph.wire import Initializer, write_model
from oml_mlflow.names import IMG, PROPERTY, SIDES, TXT, check_export_name, model_name, pipeline_file
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.stages import demand_stages, prove
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.source.model import Source


def check_destination(export_name: str, output_dir: str | Path | None) -> Path:
    """Return the folder for an export, after checking that both files can be written there.

    Raises:
        InvalidName: If the name can't be that of an in-database model.
        NameTaken: If one of the files exists.
        ExportError: If the folder can't be written.
    """
    check_export_name(export_name)
    folder = Path(output_dir or ".").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(folder, export_name)
        # permissions say nothing of a read-only file system, so a file is written
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ExportError(
            f"folder {folder} can't be written ({error.strerror}). Nothing was written.",
            hint="give another output_dir, or change its permissions.",
        ) from error
    _refuse_taken(folder, export_name)
    return folder.resolve()


def export_pair(
    source: Source,
    config: ONNXPipelineConfig,
    export_name: str,
    output_dir: str | Path | None = None,
    *,
    profile: Profile = PROFILES[DEFAULT_PROFILE],
    validate: bool = True,
    on_event: Listener = silent,
) -> PipelinePair:
    """Write ``<export_name>_img.onnx`` and ``<export_name>_txt.onnx``; return the pair.

    Both files are written aside and get their names when both are complete and checked, so that an
    error or an interruption leaves neither.

    Args:
        source: Model to build.
        config: Properties of the pair.
        export_name: Base of both names.
        output_dir: Folder; created if missing. The current one by default.
        profile: Profile of the target.
        validate: Compare the pair with the model's own Python code on the golden probes, before
            the files get their names.
        on_event: Told of progress.

    Raises:
        InvalidName, NameTaken, ExportError: See `check_destination`.
        GraphError: If a file breaks a rule of the profile.
        ParityError: If a stage differs from the model's own by more than its limit.
    """
    config.check()
    folder = check_destination(export_name, output_dir)
    source = _with_max_length(source, config.max_seq_length)
    metadata = pair_metadata(source, config)
    with _aside(folder, export_name) as aside:
        try:
            fingerprints = _write(source, metadata, profile, export_name, aside, on_event)
        except OSError as error:
            raise ExportError(
                f"{export_name} could not be written to {folder} ({error.strerror}). "
                "Nothing was left there.",
                hint="make room, or give another output_dir.",
            ) from error
        pair = PipelinePair(
            files=_files(aside, export_name),
            fingerprints=fingerprints,
            dims=source.dims,
            metadata=metadata,
            profile=profile.name,
            companions=tuple(source.companion_files),
            source=source.name if source.revision else str(source.folder),
        )
        for side in SIDES:
            _refuse_findings(pair.path(side), profile, model_name(export_name, side))
        if validate:
            proof = prove(pair, source, on_event)
            demand_stages(proof.report)
            loss = proof.report.loss
            pair = replace(pair, model_references=proof.model, loss=loss, proof=proof)
        _publish(aside, folder, export_name)
    return replace(pair, files=_files(folder, export_name))


def _files(folder: Path, export_name: str) -> dict[str, tuple[Path, ...]]:
    return {side: (folder / pipeline_file(export_name, side),) for side in SIDES}


def pair_metadata(source: Source, config: ONNXPipelineConfig) -> dict[str, Any]:
    """Return the template metadata of a pair, which is the same for the same arguments."""
    return {
        "template": config.template,
        "model_name": source.name,
        "revision": source.revision,
        "dims": source.dims,
        "max_seq_length": source.vocabulary.max_length,
        "any_case_tokens": list(source.vocabulary.any_case),
        "post_processors": config.post_processors,
        "distance_metrics": config.distance_metrics,
        "languages": config.languages,
        "image_preparation": source.preparation.to_metadata(),
        "precision": choose_precisions(config.quantize_model, config.use_float16),
    }


def _with_max_length(source: Source, length: int | None) -> Source:
    if length is None:
        return source
    longest = source.vocabulary.max_length
    if length > longest:
        raise ConfigError(
            f"max_seq_length {length} is more than the {longest} that {source.name} has. "
            "Nothing was written.",
            hint=f"give at most {longest}, or leave it out.",
        )
    return replace(source, vocabulary=replace(source.vocabulary, max_length=length))


def _write(
    source: Source,
    metadata: dict[str, Any],
    profile: Profile,
    export_name: str,
    aside: Path,
    on_event: Listener,
) -> dict[str, str]:
    cuts = {IMG: PIXEL_VALUES, TXT: INPUT_IDS}
    properties = {side: {PROPERTY: side_metadata(metadata, cuts[side], profile)} for side in SIDES}
    graphs = {
        IMG: image_pipeline(
            source.weights,
            source.vision,
            source.preparation,
            source.patch_px,
            profile.decoder,
            properties[IMG],
        ),
        TXT: text_pipeline(
            source.weights,
            source.text,
            source.vocabulary,
            source.eos_token_id,
            profile.tokenizer,
            properties[TXT],
        ),
    }
    precisions = read_precisions(metadata)
    graphs = {side: shrink(*graph, precisions[side]) for side, graph in graphs.items()}
    for side, (header, initializers) in graphs.items():
        _refuse_oversize(pipeline_file(export_name, side), header, initializers, profile)
    fingerprints = {}
    for side, (header, initializers) in graphs.items():
        name = pipeline_file(export_name, side)

        def report(done: int, total: int, name: str = name) -> None:
            on_event(Event("export", name, done, total))

        fingerprints[side] = write_model(aside / name, header, initializers, report)
    return fingerprints


def _refuse_oversize(
    name: str, header: onnx.ModelProto, initializers: Sequence[Initializer], profile: Profile
) -> None:
    """Raise GraphError if a file would be too large; nothing is written yet."""
    size = header.ByteSize() + estimated_size_bytes(initializers)
    if size > profile.size_limit_bytes:
        raise GraphError(
            f"{name} would have {size:,} bytes; {profile.name} takes at most "
            f"{profile.size_limit_bytes:,}. Nothing was written.",
            hint="make it smaller with quantize_model=True or use_float16=True, or export for a "
            "profile with a higher limit.",
        )


def _refuse_findings(path: Path, profile: Profile, name: str) -> None:
    """Raise GraphError if a file breaks a rule of its profile."""
    errors = [f for f in check_file(path, profile, name=name) if f.is_error]
    if errors:
        first, more = errors[0], len(errors) - 1
        raise GraphError(
            f"{path.name} is not what {profile.name} takes: {first.where}: {first.message} "
            f"({first.shown_code})" + (f"; {more} more findings" if more else "") + ". "
            "No file was left.",
            hint=first.hint,
            details={"findings": [finding.to_row() for finding in errors]},
        )


def _refuse_taken(folder: Path, export_name: str) -> None:
    for side in SIDES:
        path = folder / pipeline_file(export_name, side)
        if path.exists() or path.is_symlink():
            raise NameTaken(
                f"{path} is already there. It was not touched, and nothing was written.",
                hint="give another export name or output_dir, or remove the file.",
            )


def _staging_prefix(export_name: str) -> str:
    host = "".join(c for c in platform.node() if c.isalnum())
    return f".{export_name}.export-{host}-"


@contextlib.contextmanager
def _aside(folder: Path, export_name: str) -> Iterator[Path]:
    aside = Path(
        tempfile.mkdtemp(prefix=f"{_staging_prefix(export_name)}{os.getpid()}-", dir=folder)
    )
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, folder: Path, export_name: str) -> None:
    """Give both files their names, or neither; a file that is there meanwhile is not replaced."""
    try:
        for side in SIDES:
            name = pipeline_file(export_name, side)
            _name(aside / name, folder / name)
    except BaseException as error:
        _take_back(aside, folder, export_name)
        if isinstance(error, FileExistsError):
            _refuse_taken(folder, export_name)
        raise


def _name(staged: Path, published: Path) -> None:
    """Give a file its name without replacing another, where the file system has hard links."""
    try:
        os.link(staged, published)
    except FileExistsError:
        raise
    except OSError:
        if published.exists():
            raise FileExistsError(published) from None
        staged.rename(published)


def _clear_abandoned(folder: Path, export_name: str) -> None:
    """Remove what a killed export of this name left: its folder, and a file without the other."""
    for aside in folder.glob(f"{_staging_prefix(export_name)}*"):
        owner = aside.name.removeprefix(_staging_prefix(export_name)).split("-")[0]
        if not owner.isdigit() or _is_running(int(owner)):
            continue
        if len(_published(aside, folder, export_name)) < len(SIDES):
            _take_back(aside, folder, export_name)
        shutil.rmtree(aside, ignore_errors=True)


def _take_back(aside: Path, folder: Path, export_name: str) -> None:
    """Remove files that got their names from `aside`; those of others stay."""
    for path in _published(aside, folder, export_name):
        path.unlink()


def _published(aside: Path, folder: Path, export_name: str) -> list[Path]:
    """Return the files that got their names from `aside`."""
    first, second = (pipeline_file(export_name, side) for side in SIDES)
    linked = [
        folder / name
        for name in (first, second)
        if (aside / name).exists()
        and (folder / name).exists()
        and (folder / name).samefile(aside / name)
    ]
    # without hard links the first file leaves `aside` with its name, and the second waits there
    if not linked and (aside / second).exists() and not (aside / first).exists():
        linked = [folder / first]
    return [path for path in linked if path.exists()]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
