# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Imports NIXL, whose libraries may be missing although its package is installed."""

import importlib


def look() -> None:
    importlib.import_module("nixl._api")
