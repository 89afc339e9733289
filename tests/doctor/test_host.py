# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What doctor says of this host's memory, limits, network and environment."""

import os
import resource
import time

import pytest
from support.doctor import look, look_elsewhere

from vllm_dwdp.doctor.finding import Status
from vllm_dwdp.doctor.groups import environment, host_memory, machine, network
from vllm_dwdp.doctor.host import Host, Options

OK, WARN, FAIL = Status.OK, Status.WARN, Status.FAIL


def test_a_page_is_shared_on_this_host():
    for found in look(host_memory.shared_page, host_memory.start_board, host_memory.numa):
        assert found.status is OK


def test_a_page_that_cannot_be_made_fails_with_the_cores_sentence():
    small_files = [(resource.RLIMIT_FSIZE, 4000)]
    found = look_elsewhere("host_memory", "shared_page", limits=small_files)
    assert found.status is FAIL and "ftruncate of a memory file" in found.text
    assert "TMPDIR" in found.remedy


@pytest.mark.parametrize(
    ("check", "answer", "status"),
    [
        ("shared_page", {"reason": "expected the mark of rank 0"}, FAIL),
        ("start_board", {"board": "[Errno 13] Permission denied"}, WARN),
        ("numa", {"nodes": [0, 1], "node": -1, "warnings": ["mbind failed"]}, WARN),
    ],
)
def test_what_the_other_process_could_not_do_is_said(check, answer, status):
    host = Host(_answers={"host_memory": answer})
    (found,) = look(getattr(host_memory, check), host=host)
    assert found.status is status


def test_few_mappings_are_warned_of_with_the_setting(tmp_path, put):
    put("/proc/sys/vm/max_map_count", "1000\n")
    (found,) = look(host_memory.mappings, host=Host(Options(dwdp_size=8), tmp_path))
    assert found.status is WARN
    assert "need 1504 memory mappings" in found.text
    assert "sysctl -w vm.max_map_count=5008" in found.text


def test_few_descriptors_fail_with_the_number():
    limits = [(resource.RLIMIT_NOFILE, 300)]
    found = look_elsewhere("host_memory", "open_files", limits=limits)
    assert found.status is FAIL and "the hard limit is 300" in found.text
    assert "ulimit -n" in found.remedy and "LimitNOFILE" in found.remedy


def test_locked_memory_matters_where_rdma_is(tmp_path, put):
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, hard))
    try:
        (found,) = look(host_memory.locked_memory, host=Host(root=tmp_path))
        assert found.text == "1 MiB; 0 RDMA devices"
        put("/sys/class/infiniband/mlx5_0/x")
        (found,) = look(host_memory.locked_memory, host=Host(root=tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    assert found.status is WARN and "mlx5_0" in found.text
    assert "ulimit -l unlimited" in found.remedy


V1 = (
    "4:memory:/docker/a/b\n1:cpu,cpuacct:/docker/a\n",
    """\
31 23 0:27 /docker/a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
""",
)
V2 = ("0::/pod/inner\n", "31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")


@pytest.fixture(params=["v1", "v2"])
def limited(request, tmp_path, put):
    """A host whose groups allow 1 GiB and one and a half CPUs, in the outer of two groups."""
    groups, mounts = V1 if request.param == "v1" else V2
    put("/proc/self/cgroup", groups)
    put("/proc/self/mountinfo", mounts)
    put("/dev/shm/x")
    if request.param == "v1":
        put("/sys/fs/cgroup/memory/memory.limit_in_bytes", f"{1 << 30}\n")
        put("/sys/fs/cgroup/memory/b/memory.limit_in_bytes", "9223372036854771712\n")
        put("/sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us", "-1\n")
        put("/sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us", "150000\n")
        put("/sys/fs/cgroup/cpu/docker/cpu.cfs_period_us", "100000\n")
    else:
        put("/sys/fs/cgroup/pod/memory.max", f"{1 << 30}\n")
        put("/sys/fs/cgroup/pod/inner/memory.max", "max\n")
        put("/sys/fs/cgroup/pod/inner/cpu.max", "max 100000\n")
        put("/sys/fs/cgroup/pod/cpu.max", "150000 100000\n")
    return Host(root=tmp_path)


def test_limits_of_control_groups_are_read(limited, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    memory, cpus = look(machine.memory, machine.cpus, host=limited)
    assert memory.status is WARN and "limit 1.0 GiB; 2 ranks" in memory.text
    assert cpus.status is WARN and "a quota of 1.5 CPUs" in cpus.text
    assert "--cpuset-cpus" in cpus.remedy


def test_more_ranks_than_cores_memory_and_shared_memory_allow():
    host = Host(Options(dwdp_size=100_000))
    memory, shm, cpus = look(machine.memory, machine.shm, machine.cpus, host=host)
    assert {memory.status, shm.status, cpus.status} == {WARN}
    assert "--shm-size" in shm.remedy
    assert "Start fewer ranks" in cpus.remedy


def test_missing_shared_memory_fails(tmp_path):
    (found,) = look(machine.shm, host=Host(root=tmp_path))
    assert found.status is FAIL and "Mount a tmpfs" in found.remedy


def test_a_kernel_without_process_descriptors_is_warned_of(monkeypatch):
    def refuse(_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    (found,) = look(machine.pidfd)
    assert found.status is WARN and "seccomp" in found.remedy


def test_sandboxes_are_named(tmp_path, put):
    put("/proc/self/status", "Name:\tpython\nSeccomp:\t2\n")
    put("/proc/sys/kernel/yama/ptrace_scope", "1\n")
    (found,) = look(machine.sandbox, host=Host(root=tmp_path))
    assert found.text.startswith("seccomp: a filter; Yama's ptrace_scope 1;")


def test_clocks_that_are_wrong_or_slow_are_warned_of(tmp_path, put, monkeypatch):
    put("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n")
    (found,) = look(machine.clock, host=Host(root=tmp_path))
    assert found.status is WARN and "clock source hpet" in found.text
    monkeypatch.setattr(time, "time", lambda: 1e9)
    (found,) = look(machine.clock)
    assert found.status is WARN and "2001-09-09" in found.text


def test_this_host_reaches_itself():
    for found in look(network.host_name, network.loopback):
        assert found.status is not FAIL


@pytest.mark.hosts
def test_a_name_that_does_not_resolve_is_warned_of():
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host.invalid; exec "$@"', "sh"]
    found = look_elsewhere("network", "host_name", prefix=renamed)
    assert found.status is WARN and "doesn't resolve" in found.text
    assert "/etc/hosts" in found.remedy and "no-such-host" not in found.text


@pytest.mark.hosts
def test_a_loopback_that_is_down_fails():
    found = look_elsewhere("network", "loopback", prefix=["unshare", "--net"])
    assert found.status is FAIL and "ip link set lo up" in found.remedy


def test_a_name_of_another_host_is_warned_of():
    answer = {"name_error": None, "is_local": False, "loopback_error": None}
    (found,) = look(network.host_name, host=Host(_answers={"network": answer}))
    assert found.status is WARN and "VLLM_HOST_IP" in found.remedy


class TestSecret:
    def test_none_is_well(self):
        (found,) = look(environment.secret)
        assert found.status is OK

    def test_a_short_one_fails_and_is_not_shown(self, monkeypatch):
        monkeypatch.setenv("VLLM_DWDP_SECRET", "hush-hush")
        (found,) = look(environment.secret)
        assert found.status is FAIL and "at least 16 bytes" in found.text
        assert "hush-hush" not in found.text + found.remedy

    @pytest.mark.parametrize(("mode", "status"), [(0o600, OK), (0o644, WARN)])
    def test_a_file_is_for_this_user_alone(self, monkeypatch, tmp_path, mode, status):
        path = tmp_path / "secret"
        path.write_text("0123456789abcdef" * 4)
        path.chmod(mode)
        monkeypatch.setenv("VLLM_DWDP_SECRET_FILE", str(path))
        (found,) = look(environment.secret)
        assert found.status is status and "0123456789abcdef" not in found.text

    def test_a_missing_file_fails(self, monkeypatch):
        monkeypatch.setenv("VLLM_DWDP_SECRET_FILE", "/no/such/file")
        (found,) = look(environment.secret)
        assert found.status is FAIL and "/no/such/file" in found.text


def test_variables_are_named_without_their_values(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-very-private")
    (found,) = look(environment.variables)
    assert "VLLM_API_KEY" in found.text and "sk-very-private" not in found.text


@pytest.mark.parametrize(
    ("variable", "check", "status"),
    [
        ({"VLLM_PP_LAYER_PARTITION": "1", "VLLM_CPU_KVCACHE_SPACE": "x"}, "vllm_variables", FAIL),
        ({"LD_PRELOAD": ""}, "vllm_variables", OK),
    ],
)
def test_variables_that_vllm_cannot_use_fail(monkeypatch, variable, check, status):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    (found,) = look(getattr(environment, check))
    assert found.status is status
    assert status is OK or "VLLM_CPU_KVCACHE_SPACE" in found.text


def test_a_home_that_cannot_be_written_to_is_warned_of(tmp_path):
    (tmp_path / "file").touch()
    answer = {"cache_root": str(tmp_path / "file" / ".cache" / "vllm")}
    (found,) = look(environment.cache, host=Host(_answers={"vllm": answer}))
    assert found.status is WARN and "VLLM_CACHE_ROOT" in found.remedy
