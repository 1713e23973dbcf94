"""Profiles: what each kind of target accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from oml_mlflow.errors import ConfigError

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
TOKENIZER_DOMAIN = "ai.onnx.contrib"
DECODER_DOMAIN = "com.microsoft.extensions"
CLIP_TOKENIZER, JSON_TOKENIZER = "CLIPTokenizer", "HfJsonTokenizer"
RAW = "raw"
_GIB = 2**30
_CUSTOM_OP = re.compile(r"(?P<domain>[A-Za-z][\w.]*):(?P<name>[A-Za-z]\w*)")


@dataclass(frozen=True)
class Profile:
    """What a kind of target accepts.

    Attributes:
        name: Its name, with the decode operator if that is not its default.
        description: One line for people.
        opset_limit: Highest version of the standard operators.
        ir_limit: Highest IR version.
        size_limit_bytes: Largest ONNX file.
        tokenizer: Operator that turns strings into ids.
        decoder: ``(domain, name)`` of the operator that decodes a picture, giving BGR; or None
            for the ``raw`` variant, whose input is RGB pixels and which needs no custom operator.
        custom_operators: Operators outside the standard domains, by domain.
        encodings: Encodings of pictures that the target documents.
        source: Source of these facts.
        is_oracle: Whether Oracle's rules for tensors and metadata apply, with their ORA codes.
    """

    name: str
    description: str
    opset_limit: int
    ir_limit: int
    size_limit_bytes: int
    tokenizer: str
    encodings: tuple[str, ...]
    source: str
    decoder: tuple[str, str] | None = (DECODER_DOMAIN, "DecodeImage")
    custom_operators: Mapping[str, frozenset[str]] = field(default_factory=dict)
    is_oracle: bool = False

    def operators(self) -> dict[str, frozenset[str]]:
        """Return the accepted custom operators, the decoder included, by domain."""
        taken = dict(self.custom_operators)
        if self.decoder:
            domain, name = self.decoder
            taken[domain] = taken.get(domain, frozenset()) | {name}
        return taken


_ORACLE_23_7 = Profile(
    name="oracle-23.7",
    description="Oracle Database 23ai from release update 23.7 on",
    opset_limit=18,
    ir_limit=8,
    size_limit_bytes=_GIB,
    tokenizer=CLIP_TOKENIZER,
    encodings=("JPEG",),
    custom_operators={TOKENIZER_DOMAIN: frozenset({CLIP_TOKENIZER})},
    is_oracle=True,
    source="OML4Py writes opset 17 and IR 8; opset 18 reported accepted by Free 23.26.1; "
    "1 GB and JPEG documented. Decode operator: Oracle's own name is not public.",
)
PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        _ORACLE_23_7,
        replace(
            _ORACLE_23_7,
            name="oracle-26ai",
            description="Oracle AI Database 26ai",
            size_limit_bytes=2 * _GIB - 1,
            source="As oracle-23.7, with the limit of 2 GB that the 26ai documentation gives.",
        ),
        Profile(
            name="onnxruntime",
            description="onnxruntime and onnxruntime-extensions as installed here",
            opset_limit=21,
            ir_limit=10,
            size_limit_bytes=2 * _GIB - 1,
            tokenizer=JSON_TOKENIZER,
            encodings=("JPEG", "PNG"),
            custom_operators={
                TOKENIZER_DOMAIN: frozenset({CLIP_TOKENIZER, JSON_TOKENIZER, "StringRegexReplace"})
            },
            source="Measured with onnxruntime 1.32.0 and extensions 0.15.2; a protobuf message "
            "holds at most 2 GB.",
        ),
    )
}
DEFAULT_PROFILE = "oracle-23.7"


def decoder_name(profile: Profile) -> str:
    """Return a profile's decode operator as ``domain:Name``, or ``raw``."""
    return ":".join(profile.decoder) if profile.decoder else RAW


def get_profile(name: str, *, decode_op: str | None = None) -> Profile:
    """Return a profile, its decode operator changed if one is given.

    Args:
        name: One of `PROFILES`, or ``profile+domain.Name`` or ``profile+raw``, as a profile with
            another decode operator calls itself.
        decode_op: ``domain:Name`` of the target's own decode operator, or ``raw`` for graphs that
            take undecoded RGB pixels, uint8 ``(height, width, 3)``.

    Raises:
        ConfigError: If there is no such profile, or `decode_op` is neither.
    """
    base, _, own = name.partition("+")
    if base not in PROFILES:
        raise ConfigError(
            f"there is no profile {name!r}.", hint=f"there are {', '.join(PROFILES)}."
        )
    if own and decode_op is None:
        domain, _, operator = own.rpartition(".")
        decode_op = RAW if own == RAW else f"{domain}:{operator}"
    profile = PROFILES[base]
    if decode_op is None:
        return profile
    if decode_op == RAW:
        return replace(profile, name=f"{base}+{RAW}", decoder=None)
    parts = _CUSTOM_OP.fullmatch(decode_op)
    if parts is None:
        raise ConfigError(
            f"decode operator {decode_op!r} is neither 'raw' nor domain:Name.",
            hint="write it as com.microsoft.extensions:DecodeImage.",
        )
    decoder = (parts["domain"], parts["name"])
    if decoder == profile.decoder:
        return profile
    return replace(profile, name=f"{base}+{'.'.join(decoder)}", decoder=decoder)
