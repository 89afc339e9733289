# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Where the experts of a layer lie, in bytes: arithmetic on numbers, without any memory."""
