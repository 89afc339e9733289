# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`python -m vllm_dwdp.cli`, for Pythons whose scripts aren't in the PATH."""

from vllm_dwdp.cli.main import main

main()
