# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A logits processor that ends its worker when a request asks for that."""

import os

from vllm.v1.sample.logits_processor import LogitsProcessor


class DeadlyWord(LogitsProcessor):
    """Ends its process when that gets a request with `extra_args={"deadly": True}`."""

    def __init__(self, vllm_config, device, is_pin_memory):
        pass

    def apply(self, logits):
        return logits

    def is_argmax_invariant(self):
        return True

    def update_state(self, batch_update):
        for _, params, _, _ in batch_update.added if batch_update else ():
            if (params.extra_args or {}).get("deadly"):
                os._exit(1)
