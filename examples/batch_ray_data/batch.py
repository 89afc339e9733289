# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs the prompts of a JSONL or Parquet file through groups of DWDP ranks, with Ray Data.

* Each actor of Ray Data holds one whole group of ranks, so Ray places a group on one node.
* Rows travel as lines of JSON. All values in a column of Arrow have one type, so a prompt of
  another type would end the job; in a line it costs only its own row.
* Only this process writes output, and what it writes is there as a whole or not at all. After a
  kill, the same command runs the rows that have no output yet.

README.md describes input, output and options.
"""

import argparse
import json
import sys
from pathlib import Path

import ray
import ray.cloudpickle
import ray.data
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # with -I Python doesn't look there
import group
from group import LINE, Group
from parts import Parts, RowId

CPUS_PER_RANK = 2
CPUS_TO_READ = 2


def main() -> None:
    args = arguments()
    depends_on = ("input", "model", "max_tokens", "llm")
    parts = Parts(args.output, {name: getattr(args, name) for name in depends_on})
    start_ray(args)
    rows = lines(args.input)
    ids = checked_ids(rows)
    run(args, rows, ids, parts)
    if missing := ids - parts.ids():
        sys.exit(f"{len(missing)} rows have no output yet; start the same command again.")
    file, num_failed = parts.join()
    print(f"{len(ids)} rows, {num_failed} of them with an error: {file}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("input", help="a .jsonl or .parquet file of rows with an id and a prompt")
    add("output", type=Path, help="a folder, in which outputs.jsonl is written at the end")
    add("--model", required=True)
    add("--data-parallel-size", type=int, default=2, help="ranks of a group")
    add("--groups", type=int, default=1, help="groups, each with all of the model")
    add("--max-tokens", type=int, default=128)
    add("--batch-size", type=int, default=256, help="rows that a group gets at a time")
    add("--llm", type=json.loads, default={}, help="other options of vllm_dwdp.LLM, as JSON")
    add("--on-gpus", action="store_true", help="have Ray reserve a GPU for each rank")
    add("--address", default="local", help="of a Ray cluster; by default this starts Ray here")
    return parser.parse_args()


def start_ray(args: argparse.Namespace) -> None:
    """Connect to the cluster, or start Ray here, with as many CPUs as the job asks for.

    To Ray these are only numbers, of which there may be more than the machine has cores.
    """
    num_cpus = args.groups * cpus_of_group(args) + CPUS_TO_READ
    here = {"num_cpus": num_cpus, "include_dashboard": False} if args.address == "local" else {}
    ray.init(address=args.address, log_to_driver=False, **here)
    ray.cloudpickle.register_pickle_by_value(group)  # other nodes may not have this folder
    ray.data.DataContext.get_current().enable_progress_bars = False  # `run` shows one


def cpus_of_group(args: argparse.Namespace) -> int:
    return CPUS_PER_RANK * args.data_parallel_size


def lines(file: str) -> ray.data.Dataset:
    """The rows of the input, each as JSON in the column LINE."""
    if file.endswith(".jsonl"):
        return ray.data.read_text(file)
    if file.endswith(".parquet"):
        rows = ray.data.read_parquet(file, columns=["id", "prompt"])
        return rows.map(lambda row: {LINE: json.dumps(row)})
    sys.exit(f"the input must be a .jsonl or a .parquet file, got {file}")


def checked_ids(rows: ray.data.Dataset) -> set[RowId]:
    """The ids of all rows; ends this program if a row has none, or if two rows have the same."""
    ids: set[RowId] = set()
    for row in rows.iter_rows():
        row_id = id_of(row[LINE])
        if row_id is None:
            sys.exit(f"a row must be an object with a whole number or a text as id: {row[LINE]}")
        if row_id in ids:
            sys.exit(f"each row must have an id of its own; several have {row_id!r}.")
        ids.add(row_id)
    return ids


def id_of(line: str) -> RowId | None:
    """The id of a row; None if the line isn't JSON, or has no whole number or text as its id."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    row_id = row.get("id") if isinstance(row, dict) else None
    return row_id if type(row_id) in (int, str) else None


def run(args: argparse.Namespace, rows: ray.data.Dataset, ids: set[RowId], parts: Parts) -> None:
    """Run the rows that have no output yet, and keep each batch as soon as it has ended."""
    done = parts.ids() & ids
    if done == ids:
        return
    options = {"model": args.model, "data_parallel_size": args.data_parallel_size, **args.llm}
    outputs = (
        rows.filter(lambda row: id_of(row[LINE]) not in done)
        .repartition(target_num_rows_per_block=args.batch_size, strict=True)
        .map_batches(
            Group,
            fn_constructor_args=(options, args.max_tokens),
            batch_size=args.batch_size,
            compute=ray.data.ActorPoolStrategy(size=args.groups),
            num_cpus=cpus_of_group(args),
            num_gpus=args.data_parallel_size if args.on_gpus else None,
        )
    )
    with tqdm(total=len(ids), initial=len(done), desc="Finished rows") as bar:
        # A strict repartition gives each task one batch, so its rows arrive when it has ended.
        for batch in outputs.iter_batches(batch_size=None, prefetch_batches=0):
            parts.add(batch[LINE])
            bar.update(len(batch[LINE]))


if __name__ == "__main__":
    main()
