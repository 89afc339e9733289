# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks with a secret believe no entry of the start-up store that a stranger has written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rank import MANIFEST

from vllm_dwdp.config import ConfigError
from vllm_dwdp.group.errors import RendezvousRefused, SecretMismatch
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.group.meet.secret import (
    FILE_VARIABLE,
    VARIABLE,
    Signer,
    read_secret,
    reason_unprotected,
)
from vllm_dwdp.group.meet.store import Endpoint

SECRET, OTHER = b"what only the ranks know", b"what somebody guesses"
REMEDY = f"give every rank the same {FILE_VARIABLE}"


@given(st.text(), st.binary(), st.binary())
def test_entry_opens_under_its_own_key_and_start_only(key, value, start_id):
    signer = Signer(SECRET).of_start(start_id)
    entry = signer.sign(key, value)
    assert signer.open(key, entry) == value
    changed = (
        (signer, f"{key}.", entry),
        (signer, key, entry + b"."),
        (Signer(SECRET).of_start(start_id + b"."), key, entry),
        (Signer(OTHER).of_start(start_id), key, entry),
        (Signer(None), key, entry),
    )
    for reader, name, read in changed:
        with pytest.raises(SecretMismatch, match=REMEDY):
            reader.open(name, read)


@pytest.mark.parametrize("entry", [b"", b"plain", b"signed ", b"signed " + b"0" * 63])
def test_entry_without_a_whole_signature_is_refused(entry):
    with pytest.raises(SecretMismatch):
        Signer(SECRET).open("key", entry)


def test_secret_is_read_from_a_file_or_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    assert read_secret() is None
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    assert read_secret() == SECRET
    monkeypatch.setenv(VARIABLE, SECRET.decode())
    with pytest.raises(ConfigError, match="got both"):
        read_secret()
    monkeypatch.delenv(FILE_VARIABLE)
    assert read_secret() == SECRET


@pytest.mark.parametrize("name", [VARIABLE, FILE_VARIABLE])
def test_short_secret_is_refused_without_being_shown(monkeypatch, tmp_path, name):
    short = "short-secret"
    file = tmp_path / "secret"
    file.write_text(short)
    monkeypatch.setenv(name, short if name == VARIABLE else str(file))
    with pytest.raises(ConfigError, match=f"at least 16 bytes from {name}, got 12") as caught:
        read_secret()
    assert short not in str(caught.value)


def test_missing_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="can't read the secret of VLLM_DWDP_SECRET_FILE"):
        read_secret()


def test_store_that_other_hosts_reach_is_not_opened_without_a_secret():
    options = {"job_rank": 0, "job_size": 2, "dwdp_size": 2, "timeout_s": 1}
    open_to_all = Rendezvous(endpoint=Endpoint("0.0.0.0", 0), **options)
    with pytest.raises(RendezvousRefused, match=r"at 0\.0\.0\.0 can be reached from other hosts"):
        open_to_all.open()


@pytest.mark.parametrize(
    ("host", "options", "is_refused"),
    [
        ("127.0.0.1", {}, False),
        ("::1", {}, False),
        ("localhost", {}, False),
        ("10.0.0.1", {}, True),
        ("node-1", {}, True),
        ("10.0.0.1", {"secret": SECRET}, False),
        ("10.0.0.1", {"needs_secret": False}, False),
    ],
)
def test_loopback_and_a_secret_protect_the_store(host, options, is_refused):
    reason = reason_unprotected(host, **{"secret": None, "needs_secret": True, **options})
    assert (reason is not None) is is_refused


def test_ranks_with_the_same_secret_share(start):
    ranks = [start(rank, secret=SECRET) for rank in range(2)]
    assert {rank.ending() for rank in ranks} == {"end: bound"}


@pytest.mark.parametrize(
    ("of_host", "of_other", "got"),
    [
        (SECRET, OTHER, "this job's signature, got another"),
        (SECRET, None, "no signature, because this rank has no secret, got one"),
        (None, SECRET, "this job's signature, got none"),
    ],
)
def test_rank_with_another_secret_is_turned_away(start, of_host, of_other, got):
    """Both ranks would go on without the check: they differ in nothing else."""
    host, other = start(0, secret=of_host, timeout_s=6), start(1, secret=of_other, timeout_s=6)
    ending = other.ending()
    assert got in ending and REMEDY in ending
    endings = (host.ending(), ending)
    assert not any(secret.decode() in text for secret in (SECRET, OTHER) for text in endings)


STRANGERS_ENTRIES = {
    "manifest/1": MANIFEST.to_bytes(),
    "failure": b"dwdp rank 1 failed, says a stranger",
}


@pytest.mark.parametrize("key", STRANGERS_ENTRIES)
def test_entry_of_a_stranger_ends_the_start(start, port, key):
    """The stranger writes while rank 1 loads, so that rank 0 comes to the entry first."""
    from torch.distributed import TCPStore

    ranks = [start(0, secret=SECRET), start(1, secret=SECRET, load_s=8)]
    for rank in ranks:
        assert (rank.next_line(), rank.next_line()) == ("open", "tried")
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    store.set(key, STRANGERS_ENTRIES[key])
    for ending in {rank.ending() for rank in ranks}:
        assert f"expected '{key}' in the start-up store to have this job's signature" in ending


def test_without_a_secret_the_same_entry_is_believed(start, port):
    """This is what a secret is for, and shows that the test above would see the difference."""
    from torch.distributed import TCPStore

    ranks = [start(0), start(1, load_s=4)]
    for rank in ranks:
        assert (rank.next_line(), rank.next_line()) == ("open", "tried")
    TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False).set(
        "failure", STRANGERS_ENTRIES["failure"]
    )
    assert {rank.ending() for rank in ranks} == {"end: dwdp rank 1 failed, says a stranger"}
