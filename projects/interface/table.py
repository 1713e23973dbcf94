"""Print OML4Py's interface against ours as a Markdown table, the second made from the code.

OML4Py's side is what Oracle documents, in "ONNX Pipeline Models: CLIP Multi-Modal Embedding" and
"Python Classes to Convert Pretrained Models to ONNX Models" of the AI Vector Search User's Guide
(23.7). The signature of ONNXPipeline itself is put together from its documented calls.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import oml_mlflow
from oml_mlflow import EmbeddingModel, MiningFunction, ONNXPipeline, ONNXPipelineConfig
from oml_mlflow.errors import OmlMlflowError

CLASSES = {
    "ONNXPipeline": ONNXPipeline,
    "EmbeddingModel": EmbeddingModel,
    "ONNXPipelineConfig": ONNXPipelineConfig,
}
SIGNATURES = {
    "ONNXPipeline": "model_name, config=None, settings={}, function=MiningFunction.EMBEDDING",
    "ONNXPipeline.export2file": "export_name, output_dir=None",
    "ONNXPipeline.export2db": "export_name",
    "ONNXPipelineConfig.from_template": "name, **kwargs",
    "ONNXPipelineConfig.show_templates": "",
    "ONNXPipelineConfig.show_preconfigured": "include_properties=False, model_name=None",
    "EmbeddingModel": "model_name, configuration=None, settings={}",
    "connect": "user, password, dsn=None",
    "disconnect": "",
    "isconnected": "",
}
DEFAULTS: dict[str, Any] = {
    "post_processors": [],
    "max_seq_length": None,
    "do_lower_case": True,
    "quantize_model": False,
    "distance_metrics": [],
    "languages": [],
    "use_float16": False,
    "use_external_data": None,
}
OTHER_VALUES: dict[str, Any] = {
    "post_processors": [{"name": "Pooling"}],
    "max_seq_length": 50,
    "do_lower_case": False,
    "quantize_model": True,
    "distance_metrics": ["DOT"],
    "languages": ["us"],
    "use_float16": True,
    "use_external_data": True,
    "labels": {},
}
SETTINGS: dict[str, Any] = {
    "cache_dir": ".",
    "logging_level": "WARNING",
    "force_download": True,
    "ignore_checksum_error": True,
    "ignore_safetensors_error": True,
}
TEMPLATES = ("text", "Image_ViT", "Image_ConvNext", "multimodal_clip")
FUNCTIONS = ("EMBEDDING", "CLASSIFCATION", "REGRESSION")
PRECONFIGURED = ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14")


def main() -> int:
    """Print the table, or compare a file with it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", type=Path, metavar="FILE", help="Exit 1 unless FILE holds it.")
    file: Path | None = parser.parse_args().check
    table = to_markdown()
    if file is None:
        print(table)
    elif table not in file.read_text(encoding="utf-8"):
        print(f"{file} does not hold the table as the code has it:\n{table}", file=sys.stderr)
        return 1
    return 0


def to_markdown() -> str:
    """Return the table."""
    calls = list(map(signature_row, SIGNATURES))
    equal = ", ".join(theirs for theirs, ours in calls if ours == "same")
    rows = [(equal, "same"), *(row for row in calls if row[1] != "same")]
    rows += [properties_row(), settings_row()]
    rows += [templates_row(), functions_row(), presets_row()]
    lines = ["| OML4Py | here |", "|---|---|"]
    return "\n".join(lines + [f"| {theirs} | {ours} |" for theirs, ours in rows])


def signature_row(name: str) -> tuple[str, str]:
    """Return a call as documented, and what differs here."""
    ours = inspect.signature(find(name)).parameters.values()
    taken = [p for p in ours if p.name != "self" and p.kind is not p.KEYWORD_ONLY]
    shown = ", ".join(map(shown_parameter, taken))
    extra = [p.name for p in ours if p.kind is p.KEYWORD_ONLY]
    same = "same" if shown == SIGNATURES[name] else f"`({shown})`"
    more = ", ".join(f"`{parameter}=`" for parameter in extra)
    return f"`{name}({SIGNATURES[name]})`", f"{same}; also {more}" if more else same


def find(name: str) -> Callable[..., Any]:
    """Return a class, a method or a function of ours by OML4Py's name."""
    owner, _, method = name.partition(".")
    found: Any = CLASSES.get(owner) or getattr(oml_mlflow, owner)
    return getattr(found, method) if method else found


def shown_parameter(parameter: inspect.Parameter) -> str:
    """Return a parameter as a signature has it, without its type."""
    stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    if parameter.default is parameter.empty:
        return stars + parameter.name
    value = parameter.default
    return f"{parameter.name}={value if isinstance(value, Enum) else repr(value)}"


def properties_row() -> tuple[str, str]:
    """Return the properties, those with another default, and values that are refused."""
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    others = [f"`{n}={getattr(config, n)}`" for n in DEFAULTS if getattr(config, n) != DEFAULTS[n]]
    refused = [n for n, value in OTHER_VALUES.items() if not works(set_and_check, n, value)]
    shown = ", ".join(f"`{n}={OTHER_VALUES[n]}`" for n in refused)
    theirs = ", ".join(f"`{name}`" for name in [*DEFAULTS, "labels"])
    return f"properties {theirs}", f"same; default {', '.join(others)}; refused: {shown}"


def set_and_check(name: str, value: Any) -> None:
    """Set a property as a user would, and check it as an export does."""
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    setattr(config, name, value)
    config.check()


def settings_row() -> tuple[str, str]:
    """Return the settings, and those that are refused."""
    refused = [n for n, v in SETTINGS.items() if not works(ONNXPipeline, "clip", settings={n: v})]
    theirs = ", ".join(f"`{name}`" for name in SETTINGS)
    return f"settings {theirs}", ("same" if not refused else f"without {', '.join(refused)}") + (
        "; `cache_dir` is the Hugging Face cache by default"
    )


def templates_row() -> tuple[str, str]:
    """Return the templates."""
    here = [name for name in TEMPLATES if works(ONNXPipelineConfig.from_template, name)]
    return f"templates {quoted(TEMPLATES)}", f"{quoted(here)}; others: `source-unsupported`"


def functions_row() -> tuple[str, str]:
    """Return the mining functions, by member or by name."""
    here = [
        name
        for name in FUNCTIONS
        if works(ONNXPipeline, "clip", function=name)
        and works(ONNXPipeline, "clip", function=MiningFunction[name])
    ]
    theirs = f"`MiningFunction` {quoted(FUNCTIONS)}"
    return theirs, f"{quoted(here)}, by member or name; others: `source-unsupported`"


def presets_row() -> tuple[str, str]:
    """Return the preconfigured CLIP models."""
    here = ONNXPipelineConfig.show_preconfigured()
    missing = set(PRECONFIGURED) - set(here)
    more = [name for name in here if name not in PRECONFIGURED]
    shown = f"without {quoted(sorted(missing))}" if missing else "both"
    return f"preconfigured CLIP {quoted(PRECONFIGURED)}", f"{shown}, and {quoted(more)}"


def works(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> bool:
    """Return whether a call is not refused."""
    try:
        call(*arguments, **keywords)
    except OmlMlflowError:
        return False
    return True


def quoted(names: Any) -> str:
    """Return names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.exit(main())
