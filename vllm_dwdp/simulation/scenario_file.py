# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Scenario files: YAML with a scenario, and variants of it to compare."""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.errors import ScenarioError
from vllm_dwdp.simulation.scenario import Scenario
from vllm_dwdp.simulation.trace import read_trace

Section = Mapping[str, Any]
VARIANTS = "variants"
DEFAULT_VARIANTS: Section = {"dwdp": {"strategy": "dwdp"}, "dep": {"strategy": "dep"}}
"""What a file without variants compares."""

COSTS = ("Costs", "NamedCosts")
"""Classes that pydantic names in the place of an error under `costs`; users know only the key."""

UNKNOWN_KEY = "unexpected_keyword_argument"
"""What pydantic calls the error of a key that a section doesn't have."""


@dataclass(frozen=True)
class Variant:
    """One scenario of a file, by name."""

    name: str
    scenario: Scenario
    requests: Sequence[Request]


def read_scenarios(path: Path, seed: int | None = None) -> Sequence[Variant]:
    """The variants of a scenario file, in its order.

    A variant is the file's scenario with some keys changed; sections are merged key by key.

    seed: takes the place of the file's seed. Raises ScenarioError for a file that can't be read or
    that has unknown keys or bad values.
    """
    base = dict(_mapping(_read_yaml(path), str(path)))
    variants = _mapping(base.pop(VARIANTS, DEFAULT_VARIANTS), f"{path}: {VARIANTS}")
    changes = {} if seed is None else {"seed": seed}
    return [
        _variant(path, str(name), _merge(_merge(base, _mapping(part, f"{path}: {name}")), changes))
        for name, part in variants.items()
    ]


def _variant(path: Path, name: str, section: Section) -> Variant:
    try:
        scenario = TypeAdapter(Scenario).validate_json(json.dumps(section, default=str))
    except ValidationError as error:
        raise ScenarioError(f"{path}, variant {name}: {_sentence(error)}") from error
    trace = scenario.workload.trace
    requests = read_trace(path.parent / trace) if trace else scenario.workload.draw(scenario.seed)
    return Variant(name, scenario, requests)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"Can't read the scenario {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ScenarioError(f"The scenario {path} must be YAML: {reason}.") from error


def _mapping(value: Any, where: str) -> Section:
    if not isinstance(value, Mapping) or not value:
        raise ScenarioError(f"{where} must be a mapping of keys to values, got {value!r}.")
    return value


def _merge(base: Section, changes: Section) -> Section:
    """`base` with the keys of `changes`; mappings in both are merged in turn."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _sentence(error: ValidationError) -> str:
    """The first error as one sentence, with its key; errors of unknown keys come first."""
    first = min(error.errors(), key=lambda one: one["type"] != UNKNOWN_KEY)
    place, message = first["loc"], first["msg"]
    key = ".".join(str(name) for name in place if name not in COSTS) or "the scenario"
    if first["type"] == UNKNOWN_KEY:
        return f"{key} is no key of a scenario; valid keys there are {_valid_keys(place[:-1])}."
    return f"{key}: {message.removeprefix('Value error, ')}, got {_short(first['input'])}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _valid_keys(place: Sequence[int | str]) -> list[str]:
    """The keys of the section at this place of a scenario."""
    section: Any = Scenario
    for name in place:
        section = _section_named(section, str(name))
    return [field.name for field in dataclasses.fields(section)]


def _section_named(section: Any, name: str) -> Any:
    """What a section's key holds; or, of sections that a key may hold, the one of this name."""
    if not dataclasses.is_dataclass(section):
        return next(one for one in _sections_in(section) if _name(one) == name)
    value = typing.get_type_hints(section)[name]
    found = _sections_in(value)
    return found[0] if len(found) == 1 else value


def _sections_in(union: Any) -> list[Any]:
    return [one for one in typing.get_args(union) or [union] if dataclasses.is_dataclass(one)]


def _name(section: Any) -> str:
    """The `kind` that a section has, or the name of its class."""
    kinds = typing.get_args(typing.get_type_hints(section).get("kind"))
    return str(kinds[0] if kinds else section.__name__)
