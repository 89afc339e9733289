# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Guards of fetching and of sharing: what the removal of each looks like, and what fails then."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old` occurs once in `file` of the package, and becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: str


SCHEDULER = "fetch/scheduler.py"
SIMULATED = "tests/fetch"
LAYERS = "tests/engine/moe/test_fetch_layers.py"
READERS = "engine/moe/routed_experts.py"
KERNELS = "tests/engine/moe/test_recipe.py"
EXTRA = "tests/unit/test_extra_experts.py"
UNTRIED = "tests/engine/moe/test_untried_kinds.py"
DRAFTS = "tests/engine/moe/test_loading.py::test_a_draft_model_has_all_experts_on_every_rank"

MUTANTS = (
    Mutant(
        "wait for the copy before the kernel (prefetch)",
        SCHEDULER,
        "            self._expose(slot, layer)\n        slot.acquire(layer, needs",
        "            slot.end_fill()\n        slot.acquire(layer, needs",
        SIMULATED,
    ),
    Mutant(
        "wait for the copy before the kernel (prefetch), on real layers",
        SCHEDULER,
        "        self._copier.wait(slot.ticket, self.stream)\n        slot.end_fill()",
        "        slot.end_fill()",
        LAYERS,
    ),
    Mutant(
        "wait for a prefetch that a selective step finds under way",
        SCHEDULER,
        "                self._expose(slot, layer)",
        "                slot.end_fill()",
        SIMULATED,
    ),
    Mutant(
        "a slot whose copies could not be submitted holds nothing",
        SCHEDULER,
        "            self._give_up(slot)\n",
        "",
        SIMULATED,
    ),
    Mutant(
        "copies without a ticket are waited for",
        SCHEDULER,
        "        slot.discard()\n        self._copier.drain()\n",
        "        slot.discard()\n",
        SIMULATED,
    ),
    Mutant(
        "wait for a cancelled copy before its slot is reused",
        SCHEDULER,
        "            self._copier.cancel(slot.ticket)\n            self._expose(slot, layer)\n",
        "            self._copier.cancel(slot.ticket)\n            slot.end_fill()\n",
        SIMULATED,
    ),
    Mutant(
        "bring the chosen experts before the kernel",
        SCHEDULER,
        "experts.fetch(*chosen)",
        "([0], 0, 0)",
        SIMULATED,
    ),
    Mutant(
        "release after the kernel: the slot goes back",
        SCHEDULER,
        "        slot.release(layer)\n",
        "",
        SIMULATED,
    ),
    Mutant(
        "next copy after the kernel, not before it (WAR)",
        SCHEDULER,
        "            self._have_everything(layer)\n",
        "            self._have_everything(layer)\n"
        "            slot = self._slot(layer)\n"
        "            slot.release(layer)\n"
        "            self._prefetch_next(slot, layer)\n"
        "            slot.state, slot.layer = SlotState.IN_USE, layer\n",
        SIMULATED,
    ),
    Mutant(
        "next copy after the kernel, not before it (WAR), on real layers",
        "engine/moe/experts_op.py",
        "    try:\n        return layer.run(mode, x, first, second)\n"
        "    finally:\n        fetcher.release(layer_idx, mode)",
        "    fetcher.release(layer_idx, mode)\n    return layer.run(mode, x, first, second)",
        LAYERS,
    ),
    Mutant(
        "release when the kernel raises",
        "engine/moe/experts_op.py",
        "    try:\n        return layer.run(mode, x, first, second)\n"
        "    finally:\n        fetcher.release(layer_idx, mode)",
        "    out = layer.run(mode, x, first, second)\n"
        "    fetcher.release(layer_idx, mode)\n    return out",
        LAYERS,
    ),
    Mutant(
        "a slot's next copy starts at release",
        SCHEDULER,
        "            self._prefetch_next(slot, layer)\n",
        "            pass\n",
        SIMULATED,
    ),
    Mutant(
        "the cycle wraps over the end of the step",
        SCHEDULER,
        "zip(cycle, cycle[1:] + cycle[:1], strict=True)",
        "zip(cycle, cycle[1:] + cycle[-1:], strict=True)",
        SIMULATED,
    ),
    Mutant(
        "layers that miss nothing are skipped",
        SCHEDULER,
        "[layer for layer in of_slot if layers[layer].num_slices]",
        "list(of_slot)",
        SIMULATED,
    ),
    Mutant(
        "first layers are fetched before the first step",
        SCHEDULER,
        "                self._begin_fill(slot, first)\n",
        "                pass\n",
        SIMULATED,
    ),
    Mutant(
        "a slot is handed on after the last use of a step only",
        "fetch/layer_uses.py",
        "self._uses[layer] >= self._expected[layer]",
        "self._uses[layer] >= 1",
        SIMULATED,
    ),
    Mutant(
        "layers that run less often than before are noticed",
        "fetch/layer_uses.py",
        "            self._expected[held] = self._uses[held]\n",
        "            pass\n",
        SIMULATED,
    ),
    Mutant(
        "some chosen experts are not all that a layer misses",
        SCHEDULER,
        "        if slot.layer == layer and slot.is_whole:\n            self.counters.hits += 1",
        "        if slot.layer == layer:\n            self.counters.hits += 1",
        SIMULATED,
    ),
    Mutant(
        "chosen experts are forgotten when the slot held another layer",
        SCHEDULER,
        "            self._empty(slot, layer)\n            experts.forget()\n",
        "            self._empty(slot, layer)\n",
        SIMULATED,
    ),
    Mutant(
        "a slot that holds another layer is not read",
        "fetch/slot.py",
        "        if layer != self.layer or",
        "        if",
        SIMULATED,
    ),
    Mutant(
        "transitions of a slot are checked",
        "fetch/slot.py",
        "        if self.state is not before:",
        "        if False:",
        SIMULATED,
    ),
    Mutant(
        "a graph that copies finds no copy under way",
        SCHEDULER,
        "            if slot.state is SlotState.FILLING:\n                self._end_fill(slot)\n",
        "",
        SIMULATED,
    ),
    Mutant(
        "a graph that copies leaves nothing to rely on",
        SCHEDULER,
        "                self._end_fill(slot)\n            slot.discard()\n",
        "                self._end_fill(slot)\n",
        SIMULATED,
    ),
    Mutant(
        "graphs of direct steps leave slots warm",
        SCHEDULER,
        "        if not self.policy.graphs_write_slots:\n            return\n",
        "",
        SIMULATED,
    ),
    Mutant(
        "graphs that copy are known by their sizes",
        "fetch/policy.py",
        "self.modes_up_to(self.captured_tokens)",
        "self.modes_up_to(0)",
        "tests/unit/test_policy.py",
    ),
    Mutant(
        "captured steps don't prefetch",
        "fetch/policy.py",
        "may_prefetch=num_tokens > captured_tokens",
        "may_prefetch=True",
        "tests/unit/test_policy.py",
    ),
    Mutant(
        "a plan covers the last slice of each piece",
        "layout/copies.py",
        "range(0, piece.num_bytes, slice_bytes)",
        "range(0, max(1, piece.num_bytes - slice_bytes), slice_bytes)",
        "tests/unit/test_copy_plan.py",
    ),
    Mutant(
        "pages of a slot are used once in a layer",
        "layout/slots.py",
        "free[max(fitting)].pop()",
        "free[max(fitting)][-1]",
        "tests/unit/test_copy_plan.py",
    ),
    Mutant(
        "copies keep what they write and read mapped",
        "memory/slots.py",
        "                self._pages[self._layout.slot_of(layer_idx)],\n                direct,\n",
        "",
        LAYERS,
    ),
    Mutant(
        "local experts get the activation scale of all experts",
        READERS,
        "        self.input_scales.complete(self._parameters)\n",
        "",
        "tests/engine/moe/test_fp8_layer.py",
    ),
    Mutant(
        "what vLLM has set on a kernel is set on the one made again",
        "engine/moe/kernel/recipe.py",
        "            vars(experts)[name] = show(note, tensors, num_experts)\n",
        "            pass\n",
        KERNELS,
    ),
    Mutant(
        "a kernel that still counts local experts is refused",
        "engine/moe/kernel/self_check.py",
        "                    yield (*place, name)\n",
        "                    yield from ()\n",
        KERNELS,
    ),
    Mutant(
        "small layers tell the tensors of experts of a kind that was not tried",
        READERS,
        "moe_kernel is None or is_tried(self)",
        "moe_kernel is None or True",
        UNTRIED,
    ),
    Mutant(
        "what doesn't follow from small layers is refused",
        "engine/moe/kernel/growth.py",
        " or few.grown(axis, num_experts) != form:",
        ":",
        UNTRIED,
    ),
    Mutant(
        "a draft model's layers are vLLM's own",
        "engine/moe/layer_classes.py",
        "    is_drafts = shared is not kind and context().is_complete\n",
        "    is_drafts = False\n",
        DRAFTS,
    ),
    Mutant(
        "a draft model reads all of its experts",
        "engine/moe/loader.py",
        "            if self._is_mapped and not self._is_draft\n",
        "            if self._is_mapped\n",
        DRAFTS,
    ),
    Mutant(
        "a reader keeps its tensors when it settles",
        READERS,
        "        own |= {place[0] for rows in self.rows for place in rows.places}\n",
        "",
        KERNELS,
    ),
    Mutant(
        "a copy of an extra expert is filled before a view shows it",
        "memory/expert_views.py",
        "block.fill(0, views[tensor_idx].address + extent.start, extent.num_bytes)",
        "pass",
        EXTRA,
    ),
    Mutant(
        "blocks are cut where copies of any rank begin and end",
        "layout/extra_experts.py",
        "in itertools.chain.from_iterable(wishes):",
        "in wishes[layout.rank]:",
        EXTRA,
    ),
    Mutant(
        "padding is not counted as an expert",
        "rank/expert_counts.py",
        "ids.flatten() + 1",
        "ids.flatten().clamp(min=0) + 1",
        EXTRA,
    ),
)
