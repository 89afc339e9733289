# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank's memory, on top of the compiled core: own experts, views of all experts, slots."""
