# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Holds prompts back until they have enough tokens for a step that hides its copies."""
