# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Models, hardware and loads that the planner's tests share."""

from pathlib import Path

import yaml

from vllm_dwdp.planning.hardware import read_hardware
from vllm_dwdp.planning.model_config import read_model
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.spread import spread_experts

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())
R1 = read_model("deepseek-r1")
GB200 = read_hardware("gb200")
R1_RATES = Rates.achieved(GB200, 4)
R1_SPREAD = spread_experts(R1, 4)
SMALL_CONFIG = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
