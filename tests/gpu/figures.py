# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What checks say to the suite: a line of JSON for each set of figures, and which miss a limit."""

import json


def say(check, *, at_most=None, at_least=None, **figures):
    """at_most, at_least: limits by the names of figures."""
    limits = {name: f"<= {limit}" for name, limit in (at_most or {}).items()}
    limits |= {name: f">= {limit}" for name, limit in (at_least or {}).items()}
    misses = [name for name, limit in (at_most or {}).items() if not figures[name] <= limit]
    misses += [name for name, limit in (at_least or {}).items() if not figures[name] >= limit]
    print(json.dumps({"check": check, "figures": figures, "limits": limits, "misses": misses}))
