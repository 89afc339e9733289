# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Shares the experts of every kind of MoE layer that vLLM can build, and compares with the whole.

    python tests/contract/formats/kernel_source.py    # once; fetches triton_kernels
    python tests/contract/formats/probe.py [--json FILE] [--page docs/formats.md] [PATTERN ...]
    python tests/contract/formats/probe.py --untried [--json FILE] [PATTERN ...]

With --untried no kind of layer counts as tried: dwdp builds small layers of each to find the
tensors of experts, and they must be those that it finds by sizes.

Without triton_kernels, the cases whose kernels need it are not run. A run of all cases then fails,
since it builds fewer than it should; with --at-least 0 it doesn't.

For each case, vLLM builds one layer with all experts, and dwdp builds the layer of each of two
ranks. All are loaded from one random checkpoint, and processed by vLLM. Then the ranks' rows are
put together, each rank's layer is bound to them, and everything that it reaches is compared bit by
bit with what the whole layer reaches. No kernel runs.
"""

import argparse
import dataclasses
import functools
import gc
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]
import claims_cuda  # isort: skip - before anything of vLLM
import kernel_source
import plants
import table
from cases import Case, all_cases
from compare import differences, reads_in_place, same_scales, unlike
from forcing import forced, one_process
from layers import Plant, build, load, make_checkpoint, process, rank_layers
from sharing import bind_slot, share, slot_reader

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.kernel.expert_rows import by_size, expert_rows
from vllm_dwdp.engine.moe.kernel.recipe import note_arguments
from vllm_dwdp.engine.moe.kernel.tried_pairs import TRIED

SAME = "same bits"
SAME_VALUES = "same values, other bits"
TWO_FACTORS = (
    *("w13_weight_scale", "w13_weight_scale_2", "w2_weight_scale", "w2_weight_scale_2"),
    *("_w1.scale", "_w2.scale", "_w1.alpha_or_gscale", "_w2.alpha_or_gscale"),
)
"""Ends of the paths to scales whose product counts, see same_scales."""

MIN_BUILT = 118
"""A run of all cases that builds fewer of them shows too little: something isn't installed."""

UNUSED = {"w13_input_global_scale", "w2_input_global_scale"}
"""Parameters that no kernel reads once they are processed, as compressed-tensors leaves them."""


@dataclasses.dataclass
class Result:
    """What a case showed.

    case: its name. method, kernel: the names of vLLM's classes. shared: names of the tensors that
    ranks share.
    other_rows: tensors whose axis of experts small layers tell otherwise than sizes do. different:
    what differs from the whole layer, by path. has_other_bits: whether scales differ
    whose product is the same. refused: dwdp's sentence. not_built: why stock vLLM can't build the
    layer here. not_run: why the case was not tried.
    """

    case: str
    method: str = ""
    kernel: str = ""
    shared: list[str] = dataclasses.field(default_factory=list)
    other_rows: list[str] = dataclasses.field(default_factory=list)
    different: list[str] = dataclasses.field(default_factory=list)
    has_other_bits: bool = False
    refused: str = ""
    not_built: str = ""
    not_run: str = ""

    @property
    def is_built(self) -> bool:
        return not self.not_built and not self.not_run

    @property
    def verdict(self) -> str:
        if self.not_run:
            return f"not run: {self.not_run}"
        if self.not_built:
            return f"not built here: {self.not_built}"
        if self.refused:
            return f"refused: {self.refused}"
        if self.other_rows:
            return f"OTHER ROWS: {', '.join(self.other_rows)}"
        if self.different:
            return f"DIFFERENT: {', '.join(self.different)}"
        return SAME_VALUES if self.has_other_bits else SAME


def plant_nothing(layer: Any) -> None:
    pass


def run(case: Case, index: int, plant: Plant = plant_nothing) -> Result:
    """Try a case. plant: a change to each rank's processed layer, see plants.py."""
    result = Result(case.name)
    if case.needs_triton_kernels and not kernel_source.folder():
        result.not_run = "triton_kernels isn't here, see kernel_source.py"
        return result
    claims_cuda.claim(case.capability, is_cpu=case.is_cpu)
    try:
        with forced(case):
            whole = build(case, index)
            checkpoint = make_checkpoint(whole)
            load(whole, checkpoint)
            process(whole)
    except Exception as error:
        result.not_built = f"{type(error).__name__}: {error}".split("\n")[0]
        return result
    result.method = type(whole.quant_method).__name__
    result.kernel = type(whole.quant_method.moe_kernel.fused_experts).__name__
    with forced(case):
        try:
            layers = rank_layers(case, index + 1, checkpoint, plant)
            share_and_compare(layers, whole, result)
        except ConfigError as error:
            result.refused = str(error).partition(": ")[2]
    return result


def other_rows(layer: Any) -> set[str]:
    """Tensors whose rows of experts sizes don't tell as dwdp does; any only with --untried."""
    num_local = len(layer.local_experts)
    sizes = expert_rows(layer, num_local, functools.partial(by_size, num_local=num_local))
    return {rows.name for rows in set(sizes) ^ set(layer.expert_rows())}


def share_and_compare(layers: list[Any], whole: Any, result: Result) -> None:
    result.other_rows = sorted(set().union(*map(other_rows, layers)))
    if names := unlike(layers):
        result.refused = f"dwdp ranks 0 and 1 differ in replicated: {', '.join(sorted(names))}"
        return
    result.shared = share(layers)
    found = set()
    for layer in layers:
        found |= differences(layer, whole)
        bind_slot(layer)
        found |= {f"slot: {path} reads in place" for path in reads_in_place(layer)}
        found |= {f"slot: {path}" for path in differences(slot_reader(layer), whole)}
    found = {path for path in found if path.removeprefix("slot: ") not in UNUSED}
    if found and all(same_scales(layer, whole) for layer in layers):
        result.has_other_bits = True
        found = {path for path in found if not path.endswith(TWO_FACTORS)}
    result.different = sorted(found)


def compared(patterns: list[str]) -> Iterator[Result]:
    for index, case in enumerate(all_cases()):
        if not patterns or any(re.search(pattern, case.name) for pattern in patterns):
            yield run(case, 10 * index)


def planted() -> Iterator[Result]:
    """Results by the names of the planted mistakes."""
    cases = {case.name: case for case in all_cases()}
    for index, (plant, name) in enumerate(plants.PLANTS.items()):
        result = run(cases[name], 10 * index, plant)
        yield dataclasses.replace(result, case=plant.__name__)


def check_built(results: list[Result], at_least: int) -> None:
    """End with a sentence if fewer cases than `at_least` were built."""
    if (found := sum(result.is_built for result in results)) < at_least:
        sys.exit(
            f"expected at least {at_least} cases to be built, got {found} of {len(results)}; fetch "
            "triton_kernels with kernel_source.py, or allow fewer with --at-least."
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("patterns", nargs="*", help="of the names of cases to run")
    parser.add_argument("--planted", action="store_true", help="plant mistakes, see plants.py")
    parser.add_argument("--untried", action="store_true", help="as if no kind were tried")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--page", type=Path, help="page whose table to replace, docs/formats.md")
    parser.add_argument(
        "--at-least",
        type=int,
        metavar="NUMBER",
        help=f"fail if fewer cases are built; {MIN_BUILT} if all cases are run, otherwise 0",
    )
    given = parser.parse_args()
    runs_all = not given.patterns and not given.planted
    at_least = (MIN_BUILT if runs_all else 0) if given.at_least is None else given.at_least
    note_arguments()
    if given.untried:
        TRIED.clear()
        gc.freeze()  # dwdp collects each small layer; without the modules, that is fast
    results = []
    with one_process():
        for result in planted() if given.planted else compared(given.patterns):
            results.append(result)
            print(f"{result.case}: {result.verdict}", flush=True)
    found = [dataclasses.asdict(result) | {"verdict": result.verdict} for result in results]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    check_built(results, at_least)
    if given.page:
        given.page.write_text(table.replace(given.page.read_text(), table.lines(found)))


if __name__ == "__main__":
    main()
