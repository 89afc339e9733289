# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The MoE layer whose experts are shared: how it is built, loaded, bound to views, and run."""
