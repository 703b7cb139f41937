"""refork.cgroup finds the control group that counts our memory, on whatever machine, and reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork import api, cgroup

if TYPE_CHECKING:
    from pathlib import Path

NO_LIMIT_1 = "9223372036854771712"

MOUNT_2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
OTHER_MOUNTS = (
    "22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n"
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)

GROUP_2 = {
    "memory.current": "5000\n",
    "memory.stat": "anon 3000\nfile 2000\ninactive_file 1500\n",
    "memory.max": "8000\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n",
    "memory.pressure": (
        "some avg10=1.25 avg60=0.50 avg300=0.10 total=123\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=9\n"
    ),
}
GROUP_1 = {
    "memory.usage_in_bytes": "5000\n",
    "memory.stat": f"cache 1\ninactive_file 7\nhierarchical_memory_limit {NO_LIMIT_1}\ntotal_inactive_file 1500\n",
    "memory.limit_in_bytes": f"{NO_LIMIT_1}\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
}


class Machine:
    """A file system with /proc and /sys as a kernel would show them."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def process(self, *, membership: str, mounts: str) -> None:
        """Say which groups the process is in, and what is mounted."""
        own = self.top / "proc" / "self"
        own.mkdir(parents=True)
        (own / "cgroup").write_text(membership)
        (own / "mountinfo").write_text(mounts)

    def group(self, path: str, files: dict[str, str]) -> None:
        """Make a group."""
        directory = self.top / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text)

    def read(self) -> api.Cgroup | None:
        """Find the group and read it."""
        place = cgroup.find(str(self.top))
        return None if place is None else cgroup.read(place)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


EXPECTED_2 = api.Cgroup(
    version=2, usage=5000, working_set=3500, limit=8000, oom_kills=2, psi_some_avg10=1.25, psi_full_avg10=0.75
)
EXPECTED_1 = api.Cgroup(version=1, usage=5000, working_set=3500, limit=None, oom_kills=4)


def test_version_2_is_read_where_the_process_is(machine: Machine) -> None:
    """A unit of systemd: the group is below the mount point."""
    machine.process(membership="0::/system.slice/app.service\n", mounts=OTHER_MOUNTS + MOUNT_2.format(root="/"))
    machine.group("sys/fs/cgroup/system.slice/app.service", GROUP_2)
    assert machine.read() == EXPECTED_2


def test_version_2_in_a_container_is_the_mount_point(machine: Machine) -> None:
    """With a namespace of its own for control groups a container sees its group as the root."""
    machine.process(membership="0::/\n", mounts=MOUNT_2.format(root="/"))
    machine.group("sys/fs/cgroup", GROUP_2)
    assert machine.read() == EXPECTED_2


def test_version_2_shown_with_the_hosts_name_is_found(machine: Machine) -> None:
    """Without that namespace the name is the host's, and only the container's part of the tree is mounted."""
    machine.process(membership="0::/kubepods/pod1/abc\n", mounts=MOUNT_2.format(root="/kubepods/pod1/abc"))
    machine.group("sys/fs/cgroup", GROUP_2)
    assert machine.read() == EXPECTED_2


def test_a_group_outside_of_what_is_mounted_is_the_mount_point(machine: Machine) -> None:
    """A process that was moved out of its namespace's root sees ``/..``; so does one that is told nothing of use."""
    machine.process(membership="0::/../other\n", mounts=MOUNT_2.format(root="/"))
    machine.group("sys/fs/cgroup", GROUP_2)
    assert machine.read() == EXPECTED_2


def test_the_lowest_limit_on_the_way_up_holds(machine: Machine) -> None:
    """A pod's limit holds for a container without one."""
    machine.process(membership="0::/pod/container\n", mounts=MOUNT_2.format(root="/"))
    machine.group("sys/fs/cgroup/pod", {"memory.max": "7000\n"})
    machine.group("sys/fs/cgroup/pod/container", GROUP_2 | {"memory.max": "max\n"})
    found = machine.read()
    assert found is not None
    assert found.limit == 7000


def test_a_group_that_does_not_count_memory_is_counted_by_the_next_one_up(machine: Machine) -> None:
    """The memory controller is enabled from the top down, and may end anywhere."""
    machine.process(membership="0::/pod/container/sub\n", mounts=MOUNT_2.format(root="/"))
    machine.group("sys/fs/cgroup/pod/container/sub", {"cgroup.procs": ""})
    machine.group("sys/fs/cgroup/pod/container", GROUP_2)
    assert machine.read() == EXPECTED_2


def test_version_2_without_limit_pressure_or_events_is_read(machine: Machine) -> None:
    """Old kernels, and ones built without pressure stall information."""
    machine.process(membership="0::/\n", mounts=MOUNT_2.format(root="/"))
    machine.group("sys/fs/cgroup", {"memory.current": "5000\n"})
    assert machine.read() == api.Cgroup(version=2, usage=5000, working_set=5000, limit=None, oom_kills=0)


def test_version_1_is_read_where_the_process_is(machine: Machine) -> None:
    """The memory controller has a hierarchy of its own, and no word for no limit."""
    membership = "5:memory:/app\n4:cpu,cpuacct:/elsewhere\n1:name=systemd:/\n"
    machine.process(membership=membership, mounts=OTHER_MOUNTS + MOUNT_1.format(root="/"))
    machine.group("sys/fs/cgroup/memory/app", GROUP_1)
    assert machine.read() == EXPECTED_1


def test_version_1_in_a_container_is_the_mount_point(machine: Machine) -> None:
    """The name is the host's, and the mount shows the container's group."""
    machine.process(membership="5:memory:/docker/abc\n", mounts=MOUNT_1.format(root="/docker/abc"))
    machine.group("sys/fs/cgroup/memory", GROUP_1 | {"memory.limit_in_bytes": "6000\n"})
    found = machine.read()
    assert found is not None
    assert (found.version, found.limit) == (1, 6000)


def test_version_1_knows_the_limit_of_those_above(machine: Machine) -> None:
    """The kernel adds it up itself."""
    machine.process(membership="5:memory:/a/b\n", mounts=MOUNT_1.format(root="/"))
    stat = GROUP_1["memory.stat"].replace(NO_LIMIT_1, "9000")
    machine.group("sys/fs/cgroup/memory/a/b", GROUP_1 | {"memory.stat": stat})
    found = machine.read()
    assert found is not None
    assert found.limit == 9000


def test_in_a_hybrid_memory_is_where_its_controller_is(machine: Machine) -> None:
    """Both versions are mounted; the second one has no controllers."""
    hybrid = MOUNT_2.format(root="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    machine.process(membership="0::/app\n5:memory:/app\n", mounts=hybrid + MOUNT_1.format(root="/"))
    machine.group("sys/fs/cgroup/unified/app", {"cgroup.procs": "", "memory.pressure": GROUP_2["memory.pressure"]})
    machine.group("sys/fs/cgroup/memory/app", GROUP_1)
    assert machine.read() == EXPECTED_1


def test_a_hybrid_whose_memory_is_in_version_2_is_read_there(machine: Machine) -> None:
    """The controllers can be shared out the other way round."""
    hybrid = MOUNT_2.format(root="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    machine.process(membership="0::/app\n4:cpu,cpuacct:/app\n", mounts=OTHER_MOUNTS + hybrid)
    machine.group("sys/fs/cgroup/unified/app", GROUP_2)
    assert machine.read() == EXPECTED_2


def test_a_mount_point_with_a_space_is_found(machine: Machine) -> None:
    """The kernel writes it as an octal escape."""
    odd = MOUNT_2.format(root="/").replace("/sys/fs/cgroup", r"/sys/fs/c\040group")
    machine.process(membership="0::/\n", mounts=odd)
    machine.group("sys/fs/c group", GROUP_2)
    assert machine.read() == EXPECTED_2


@pytest.mark.parametrize(
    ("membership", "mounts"),
    [("", ""), ("0::/\n", ""), ("0::/\n", MOUNT_2.format(root="/")), ("5:memory:/x\n", MOUNT_1.format(root="/"))],
)
def test_no_group_to_read_is_no_error(machine: Machine, membership: str, mounts: str) -> None:
    """A kernel without control groups, and one that shows none to us."""
    machine.process(membership=membership, mounts=mounts)
    assert machine.read() is None


def test_a_group_that_has_gone_is_none(machine: Machine) -> None:
    """It was there when it was found."""
    machine.process(membership="0::/\n", mounts=MOUNT_2.format(root="/"))
    machine.group("sys/fs/cgroup", GROUP_2)
    place = cgroup.find(str(machine.top))
    assert place is not None
    (machine.top / "sys/fs/cgroup/memory.current").unlink()
    assert cgroup.read(place) is None


def test_this_machine_counts_what_a_process_takes() -> None:
    """Live: the group's usage is at least what a process of it has just written to."""
    if cgroup.find() is None:
        pytest.skip("this process is in no control group that counts memory")
    size = 64 * 1024 * 1024
    look = (
        "import sys; from refork import cgroup; place = cgroup.find(); before = cgroup.read(place);"
        f"kept = b'x' * {size}; after = cgroup.read(place);"
        "print(before.version, before.oom_kills >= 0, after.usage, after.working_set, len(kept))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, env=environment)
    version, counts, usage, working_set, _ = told.stdout.split()
    assert version in {"1", "2"}
    assert counts == "True"
    assert int(usage) >= size
    assert int(usage) >= int(working_set) > 0


@given(st.text())
def test_garbage_is_parsed_to_facts_or_nothing(text: str) -> None:
    """No parser raises, whatever a kernel to come may write."""
    assert all(name in text for name in cgroup.parse_membership(text))
    assert all(mount.version in {1, 2} for mount in cgroup.parse_mounts(text))
    assert all(value >= 0 for value in cgroup.parse_stat(text).values())
    assert cgroup.parse_limit(text) is None or text.strip().isdigit()
    assert set(cgroup.parse_pressure(text)) <= {"some", "full"}
