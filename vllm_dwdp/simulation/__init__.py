# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A simulator of many ranks: it predicts what no small machine can measure.

It runs on simpy. It knows nothing of vLLM, of memory or of GPUs: what a step costs comes in through
`costs.StepCosts`. `planned.PlannedCosts` are those of the planner's roofline.
"""
