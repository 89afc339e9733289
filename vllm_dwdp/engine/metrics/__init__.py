# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Metrics of DWDP on vLLM's `/metrics`, for each rank.

series.py says which there are. report.py reads them in a rank's engine process, poller.py asks for
them in the front-end every few seconds, and exporter.py sets them there.
"""
