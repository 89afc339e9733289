# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Takes out of the report what doesn't belong into a public bug report."""

import os
import re
import socket
from collections.abc import Mapping

SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_KEY|ACCESS_KEY", re.I)
SHORTEST = 6
"""Shorter values aren't taken out: they may be parts of ordinary words."""


class Redaction:
    """Replaces this host's name, the user's home and the values of secret variables in a text."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        given = os.environ if environment is None else environment
        self._values = [
            (value, f"<value of {name}>")
            for name, value in given.items()
            if SECRET_NAMES.search(name) and not name.endswith("_FILE") and len(value) >= SHORTEST
        ]
        home = given.get("HOME", "").rstrip("/")
        self._home = re.compile(rf"{re.escape(home)}(?=/|\W|$)") if len(home) > 1 else None
        host = socket.gethostname()
        names = {host, host.partition(".")[0]} - {"", "localhost"}
        either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        # A dot and a letter may follow: 'vm' is a good name for a host, and part of a setting's.
        self._host = re.compile(rf"(?<![\w.-])(?:{either})(?![\w-]|\.\w)") if names else None

    def clean(self, text: str) -> str:
        for value, name in self._values:
            text = text.replace(value, name)
        if self._home is not None:
            text = self._home.sub("~", text)
        return text if self._host is None else self._host.sub("<this host>", text)
