# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A trace file is what Perfetto reads, and reading it gives back what was written."""

import json

import jsonschema
import pytest
from support.host_layers import HostLayers

from vllm_dwdp.config import FetchMode
from vllm_dwdp.trace.errors import BadTrace
from vllm_dwdp.trace.span import Kind, common, total, union
from vllm_dwdp.trace.trace_file import Trace, read_trace

NUMBER = {"type": "number", "minimum": 0}
COMPLETE = {
    "properties": {
        "ph": {"const": "X"},
        "name": {"type": "string"},
        "cat": {"enum": [kind.value for kind in Kind]},
        "ts": NUMBER,
        "dur": NUMBER,
    },
    "required": ["name", "cat", "ts", "dur", "args"],
}
METADATA = {
    "properties": {
        "ph": {"const": "M"},
        "name": {
            "enum": ["process_name", "process_sort_index", "thread_name", "thread_sort_index"]
        },
        "args": {"anyOf": [{"required": ["name"]}, {"required": ["sort_index"]}]},
    },
    "required": ["name", "args"],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "pid": {"type": "integer"},
                    "tid": {"type": "integer"},
                    "args": {"type": "object"},
                },
                "required": ["ph", "pid", "tid"],
                "anyOf": [COMPLETE, METADATA],
            },
        },
    },
    "required": ["traceEvents"],
}
"""The parts of the Trace Event Format that a trace uses; the format has no schema of its own."""

OWN = {"format": "vllm-dwdp trace", "version": 1, "ranks": [{"rank": 0}]}


@pytest.fixture(scope="module", params=list(FetchMode))
def recordings(request):
    """What two ranks have recorded, in steps of one mode."""
    made = []
    for rank in range(2):
        layers = HostLayers(kernel_s=1e-3, between_s=5e-4, num_threads=1 + rank)
        layers.scheduler.start()
        made.append(layers.as_of_rank(layers.recorded(3, request.param), rank))
    return json.loads(json.dumps(made)), request.param


@pytest.fixture
def written(recordings, tmp_path):
    path = tmp_path / "trace.json"
    Trace.of(recordings[0]).write(path)
    return path


def test_file_keeps_to_the_trace_event_format(written):
    jsonschema.validate(json.loads(written.read_text()), SCHEMA)


def test_spans_of_one_thread_follow_each_other(written):
    """A viewer takes spans of one thread that overlap for calls inside of calls."""
    until = {}
    for event in json.loads(written.read_text())["traceEvents"]:
        if event["ph"] == "X":
            thread = event["pid"], event["tid"]
            assert event["ts"] >= until.get(thread, 0) - 1e-3
            until[thread] = event["ts"] + event["dur"]


def test_each_rank_is_a_process_whose_threads_have_names(written, recordings):
    events = json.loads(written.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "rank 0 on here", 1: "rank 1 on here"}
    threads = {e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 0}
    expected = {"steps", "compute"}
    if recordings[1] is not FetchMode.DIRECT:
        expected |= {"waits", "copies from rank 1", "copies from rank 2"}
    assert expected <= threads
    used = {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}
    assert used == {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}


def test_arguments_say_mode_slot_layer_and_bytes(written, recordings):
    spans = read_trace(written).spans
    kernels = [span.args for span in spans if span.kind is Kind.KERNEL and span.rank == 0]
    assert len(kernels) == 3 * 6
    assert {args["mode"] for args in kernels} == {recordings[1].value}
    assert {args["layer"] for args in kernels} == set(range(6))
    copies = [span.args for span in spans if span.kind is Kind.COPY]
    assert all(args["bytes"] > 0 and args["peer"] in ("rank 1", "rank 2") for args in copies)


def test_reading_gives_back_the_totals_that_were_written(written, recordings):
    read, made = read_trace(written), Trace.of(recordings[0])
    for one, other in zip(read.ranks, made.ranks, strict=True):
        assert one.copied_bytes == other.copied_bytes
        assert one.wait_s == pytest.approx(other.wait_s)
    assert [layer.layer for layer in read.layers] == [layer.layer for layer in made.layers]


def test_totals_agree_with_the_counters(recordings):
    made, mode = recordings
    for rank, recording in zip(Trace.of(made).ranks, made, strict=True):
        counts = recording["counts"]
        copied, waited = sum(rank.copied_bytes.values()), sum(counts["exposed_seconds"])
        assert copied == sum(map(sum, counts["bytes_fetched"].values()))
        assert rank.wait_s == pytest.approx(waited, rel=0.01, abs=1e-6)
        assert rank.bytes.agrees and rank.waits.agrees
        assert rank.num_steps == 3 and rank.tokens == 3 * 64
        assert rank.modes == {mode.value: 3}


def test_totals_of_layers_add_up_to_those_of_their_rank(recordings):
    trace = Trace.of(recordings[0])
    for rank in trace.ranks:
        layers = [layer for layer in trace.layers if layer.rank == rank.rank]
        assert sum(layer.wait_s for layer in layers) == pytest.approx(rank.wait_s)
        assert sum(layer.kernel_s for layer in layers) == pytest.approx(rank.kernel_s)
        assert sum(layer.copied_bytes for layer in layers) == sum(rank.copied_bytes.values())
    waits = [layer.wait_s for layer in trace.layers]
    assert waits == sorted(waits, reverse=True)


def test_prefetch_run_shows_copies_under_compute():
    layers = HostLayers(num_layers=8, kernel_s=4e-3, between_s=2e-3)
    layers.scheduler.start()
    layers.step()
    trace = Trace.of([layers.as_of_rank(layers.recorded(4))])
    copies = union(span.interval for span in trace.spans if span.kind is Kind.COPY)
    compute = union(
        span.interval for span in trace.spans if span.kind in (Kind.KERNEL, Kind.BETWEEN)
    )
    (rank,) = trace.ranks
    assert total(common(copies, compute)) > 0.6 * total(copies)
    assert rank.hidden_share > 0.8
    assert rank.wait_s < 0.2 * rank.copy_s


def test_steps_that_wait_for_every_copy_hide_nothing():
    layers = HostLayers(expert_bytes=1 << 20)
    (rank,) = Trace.of([layers.as_of_rank(layers.recorded(2, FetchMode.SELECTIVE))]).ranks
    assert rank.hidden_share < 0.1


def test_ranks_of_one_host_share_its_clock_and_others_are_put_beside_them():
    layers = HostLayers(kernel_s=1e-3)
    recording = layers.recorded(1)
    here = layers.as_of_rank(recording)
    there = layers.as_of_rank(recording, 1, "there")
    moved = json.loads(json.dumps(there))
    for run in moved["runs"]:
        run[-4:] = [ns + 10**15 for ns in run[-4:]]
    for entry in (*moved["waits"],):
        entry[-2:] = [ns + 10**15 for ns in entry[-2:]]
    for entry in moved["copies"]:
        entry[-3:-1] = [ns + 10**15 for ns in entry[-3:-1]]
    moved["clock_ns"] += 10**15
    spans = Trace.of([here, moved]).spans
    of_ranks = [[s.interval for s in spans if s.rank == rank] for rank in (0, 1)]
    assert of_ranks[0] == of_ranks[1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is no trace: expected JSON"),
        ("{", "is no trace: expected JSON"),
        ("[]", "is not from vllm-dwdp"),
        ('{"traceEvents": []}', "is not from vllm-dwdp"),
        ('{"otherData": {"format": "other"}, "traceEvents": []}', "is not from vllm-dwdp"),
        ('{"otherData": {"format": "vllm-dwdp trace", "version": 9}}', "has version 9"),
        ('{"otherData": {"format": "vllm-dwdp trace", "version": 1}}', "is damaged"),
        (json.dumps({"otherData": OWN, "traceEvents": [{"ph": "X"}]}), "is damaged"),
    ],
)
def test_file_of_another_kind_is_refused_with_one_sentence(content, sentence, tmp_path):
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(BadTrace, match=sentence) as refused:
        read_trace(path)
    assert str(path) in str(refused.value)


def test_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(BadTrace, match="No such file"):
        read_trace(tmp_path / "none.json")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadTrace, match="is no trace"):
        read_trace(tmp_path / "bytes")


def test_trace_of_ranks_that_ran_nothing_can_be_read(tmp_path):
    layers = HostLayers()
    layers.tracing.start(3)
    recording = layers.as_of_rank(layers.tracing.take())
    path = tmp_path / "empty.json"
    Trace.of([recording]).write(path)
    (rank,) = read_trace(path).ranks
    assert rank.num_steps == 0 and rank.hidden_share is None
