# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Reads numbers of a model's config.json under the names that families of models give them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_dwdp.planning.errors import PlanError


@dataclass
class ConfigFields:
    """The fields of one config.json, and which of them were looked for in vain.

    Callers read all that they need, and then call `check`.
    """

    values: Mapping[str, Any]
    path: Path
    missing: list[str] = field(default_factory=list)

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is set; `default` if none is, or 1 and a note for `check`.

        Raises PlanError for a value that is no whole number of at least 0.
        """
        for name in names:
            value = self.values.get(name)
            if value is not None:
                return self._whole(name, value)
        if default is None:
            self.missing.append(" or ".join(names))
            return 1
        return default

    def positive(self, *names: str, default: int | None = None) -> int:
        """As `number`, of at least 1."""
        value = self.number(*names, default=default)
        if value < 1:
            raise PlanError(f"expected {' or '.join(names)} of at least 1 in {self.path}, got 0.")
        return value

    def list_of(self, name: str) -> list[Any]:
        value = self.values.get(name)
        return value if isinstance(value, list) else []

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.values.get(name)
        return value if isinstance(value, dict) else {}

    def check(self) -> None:
        """Raises PlanError with the fields that were looked for in vain, if there are any."""
        if self.missing:
            raise PlanError(
                f"expected {', '.join(self.missing)} in {self.path}, which has none of these "
                "fields; plan reads the config.json of a Hugging Face checkpoint: give a complete "
                "one."
            )

    def _whole(self, name: str, value: Any) -> int:
        # Mixture models that list a value for each layer have no single layer to plan.
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise PlanError(f"expected a whole number as {name} in {self.path}, got {value!r}.")
        return value


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file. Raises PlanError if there is no such file, or no object in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"expected a readable file at {path}: {error}.") from error
    except json.JSONDecodeError as error:
        raise PlanError(f"expected JSON in {path}, got something else: {error}.") from error
    if not isinstance(found, dict):
        raise PlanError(f"expected a JSON object in {path}, got {type(found).__name__}.")
    return found
