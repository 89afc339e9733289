# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A logits processor that ends its worker when a request's prompt begins with a certain token."""

import os

from deadly_word import DeadlyWord

TOKEN = 7


class DeadlyPrompt(DeadlyWord):
    """Ends its process when that gets a prompt of several tokens, the first of which is TOKEN."""

    def update_state(self, batch_update):
        for _, _, prompt, _ in batch_update.added if batch_update else ():
            if len(prompt) > 1 and prompt[0] == TOKEN:
                os._exit(1)
