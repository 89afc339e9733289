# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Fills slots with NaN before each copy, and runs copies as early or as late as is allowed.

A kernel that reads a slot too early reads NaN, and a kernel whose slot is overwritten too early
reads wrong values. Copies and memory are real; only the times of the copies are chosen here.
"""

import ctypes
import dataclasses


class Poison:
    """Puts poisoned stand-ins between a scheduler and its copier.

    is_late: a copy begins when it is waited for; otherwise `submit` returns when it has ended.
    """

    def __init__(self, *, is_late):
        self._is_late = is_late

    def between(self, copier, copies, slots, layouts):
        """(copier, copies of each layer) to give to the scheduler in the place of the real ones."""
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
    """Set all bits of the pages, which is NaN in every floating-point type."""
    for address, num_bytes in pages:
        ctypes.memset(address, 0xFF, num_bytes)
