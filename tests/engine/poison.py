# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Slots full of NaN until the last moment, and copies that happen as early or as late as they may.

What reads a slot too early reads NaN; what is overwritten too early is wrong. Real copies, real
memory: only the time at which they start is chosen here.
"""

import ctypes
import dataclasses


class Poison:
    """is_late: a copy begins when somebody waits for it; else it has ended when it is submitted."""

    def __init__(self, *, is_late):
        self._is_late = is_late

    def between(self, copier, copies, slots, layouts):
        """What the scheduler gets in the place of the copier and of each layer's copies."""
        pages = [
            [
                (page.address, page.num_bytes)
                for tensor_idx in range(len(layer))
                for _, page in slots.pages(layer_idx, tensor_idx)
            ]
            for layer_idx, layer in enumerate(layouts)
        ]
        poisoned = [
            dataclasses.replace(
                layer, everything=(layer.everything, p), chosen=PoisonedChosen(layer.chosen, p)
            )
            for layer, p in zip(copies, pages, strict=True)
        ]
        return PoisonedCopier(copier, is_late=self._is_late), poisoned


class PoisonedCopier:
    def __init__(self, copier, *, is_late):
        self._copier = copier
        self._is_late = is_late
        self._waiting = {}
        self._num_submitted = 0

    def submit(self, everything, stream):
        copies, pages = everything
        fill_with_nan(pages)
        self._num_submitted += 1
        self._waiting[self._num_submitted] = copies
        if not self._is_late:
            self.wait(self._num_submitted, stream)
        return self._num_submitted

    def cancel(self, ticket):
        self._waiting.pop(ticket, None)

    def wait(self, ticket, stream):
        for earlier in sorted(t for t in self._waiting if t <= ticket):
            self._copier.wait(self._copier.submit(self._waiting.pop(earlier), stream), stream)

    def drain(self):
        self._copier.drain()


class PoisonedChosen:
    def __init__(self, chosen, pages):
        self._chosen = chosen
        self._pages = pages

    def fetch(self, *ids):
        return self._chosen.fetch(*ids)

    def forget(self):
        fill_with_nan(self._pages)
        self._chosen.forget()


def fill_with_nan(pages):
    """All bits set: NaN in every floating-point type."""
    for address, num_bytes in pages:
        ctypes.memset(address, 0xFF, num_bytes)
