# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures how many bytes fewer two ranks fetch with copies of the experts that are chosen most.

    python tests/bench/extra_experts.py [--share 0.25] [--tokens 64] [--sequences 1] [--out FILE]

Three runs of the demo model, all in `selective` mode: one counts on some prompts, one without
copies runs other prompts, and one with copies runs those other prompts again. A rank has spare
memory for --share of the bytes that it lacks. The fall of the bytes is shown beside what the counts
allow: a step of n tokens fetches an expert with probability 1 - (1 - f)^n, where f is the share of
the measured tokens that chose it. The last line of the output is JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

MODEL = Path(__file__).parents[2] / "examples" / "demo_model"
NUM_RANKS = 2
SAVED_WITHIN_S = 12.0
"""Ranks save their counts every ten seconds."""
COUNTED = (
    "It is a truth universally acknowledged,",
    "Emma Woodhouse, handsome, clever, and rich,",
    "The family of Dashwood had long been settled in",
    "Sir Walter Elliot, of Kellynch Hall, was a man",
    "In the beginning God created",
    "And the LORD spake unto Moses, saying,",
    "The LORD is my shepherd;",
    "Now these are the names of the children of",
)
MEASURED = (
    "Mr. Bennet was so odd a mixture of",
    "No one who had ever seen Catherine Morland",
    "About thirty years ago Miss Maria Ward,",
    "Elizabeth could not but smile at",
    "And it came to pass in those days, that",
    "Blessed is the man that walketh not",
    "Then said Jesus unto his disciples,",
    "And king Solomon gave unto the queen",
)


class Run(NamedTuple):
    """Of each rank: statistics, and counts by layer and expert. texts: of the outputs."""

    stats: list[dict[str, Any]]
    counts: list[list[list[int]]]
    texts: list[list[int]]


def run(prompts: tuple[str, ...], cache: Path, num_bytes: int, args: argparse.Namespace) -> Run:
    """Generate from the prompts; counts of earlier runs are read from `cache`, and added to it."""
    os.environ["VLLM_CACHE_ROOT"] = str(cache)
    from vllm import SamplingParams

    from vllm_dwdp import LLM

    section = {"fetch": "selective", "extra_expert_bytes": num_bytes}
    params = SamplingParams(temperature=0.8, seed=0, max_tokens=args.tokens, ignore_eos=True)
    with LLM(
        str(MODEL),
        data_parallel_size=NUM_RANKS,
        max_model_len=512,
        max_num_seqs=args.sequences,
        enforce_eager=True,
        additional_config={"dwdp": section},
    ) as llm:
        outputs = llm.generate([p for p in prompts for _ in range(4)], params, use_tqdm=False)
        stats = llm.dwdp_stats()
        time.sleep(SAVED_WITHIN_S)
    files = sorted(cache.glob("dwdp/expert_counts/*/rank-*.json"))
    counts = [json.loads(path.read_text()) for path in files]
    assert len(counts) == NUM_RANKS, files
    return Run(stats, counts, [list(output.outputs[0].token_ids) for output in outputs])


def allowed_fall(rank: int, chosen_by: Run, measured: Run, num_kept: int) -> float:
    """The share of a rank's bytes that copies save, by the measured frequencies of experts.

    The copies are those of the `num_kept` experts that `chosen_by` counted most. All experts of the
    demo model have the same size.
    """
    stats = measured.stats[rank]
    own = range(*stats["experts_owned"])
    missing = [
        (chosen_by.counts[rank][layer][expert], measured.counts[rank][layer][expert], layer)
        for layer in range(stats["num_layers"])
        for expert in range(stats["num_experts"])
        if expert not in own
    ]
    chances = []
    for _, count, layer in sorted(missing, key=lambda one: -one[0]):
        tokens, steps = stats["tokens"][layer], stats["forwards"][layer]
        chances.append(1 - (1 - min(1.0, count / tokens)) ** (tokens / steps))
    return sum(chances[:num_kept]) / sum(chances)


def fetched(stats: dict[str, Any]) -> float:
    """Bytes that a rank fetched for a step."""
    return sum(stats["bytes_fetched"]["selective"]) / stats["forwards"][0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(os.devnull))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, other = Path(folder) / "first", Path(folder) / "other"
        counted = run(COUNTED, first, 1, args)
        lacking = counted.stats[0]["expert_bytes_from_peers"]
        before = run(MEASURED, other, 1, args)
        after = run(MEASURED, first, round(args.share * lacking), args)
    result = compare(counted, before, after, lacking)
    args.out.write_text(json.dumps(result))
    print(json.dumps(result))
    sys.exit(not result["outputs_are_equal"])


def compare(counted: Run, before: Run, after: Run, lacking: int) -> dict[str, Any]:
    kept = [stats["expert_bytes_extra"] for stats in after.stats]
    num_missing = counted.stats[0]["num_layers"] * counted.stats[0]["num_experts"] // NUM_RANKS
    num_kept = [round(num_bytes / lacking * num_missing) for num_bytes in kept]
    ranks = range(NUM_RANKS)
    return {
        "lacking_bytes": lacking,
        "extra_bytes": kept,
        "experts_kept": num_kept,
        "fetched_bytes_per_step_before": [round(fetched(stats)) for stats in before.stats],
        "fetched_bytes_per_step_after": [round(fetched(stats)) for stats in after.stats],
        "tokens_per_step": round(
            statistics.mean(s["tokens"][0] / s["forwards"][0] for s in after.stats), 2
        ),
        "fall": [
            round(1 - fetched(a) / fetched(b), 3)
            for a, b in zip(after.stats, before.stats, strict=True)
        ],
        "fall_allowed_by_counts": [
            round(allowed_fall(rank, counted, before, num_kept[rank]), 3) for rank in ranks
        ],
        "fall_with_the_best_copies": [
            round(allowed_fall(rank, before, before, num_kept[rank]), 3) for rank in ranks
        ],
        "outputs_are_equal": after.texts == before.texts,
    }


if __name__ == "__main__":
    main()
