"""vCPUs and memory are laid out as Nova lays them out."""

import pytest

from imagefs.cli.machine.model import Node
from imagefs.cli.machine.processor import plan_memory, plan_processor
from imagefs.errors import InvalidInput
from imagefs.instances.properties import Properties


@pytest.mark.parametrize(
    ("vcpus", "given", "topology"),
    [
        (4, {}, (4, 1, 1)),
        (4, {"cores": 2}, (2, 2, 1)),
        (4, {"cores": 4}, (1, 4, 1)),
        (4, {"threads": 2}, (2, 1, 2)),
        (8, {"sockets": 2, "cores": 2, "threads": 2}, (2, 2, 2)),
        (8, {"max_sockets": 1}, (1, 8, 1)),
        (8, {"max_sockets": 2, "max_cores": 2}, (2, 2, 2)),
        (6, {"cores": 4}, (6, 1, 1)),
        (6, {"cores": 4, "max_sockets": 2}, (2, 3, 1)),
        (7, {"threads": 7}, (1, 1, 7)),
    ],
)
def test_topologies_meet_wishes_then_avoid_threads_then_prefer_sockets(vcpus: int, given: dict[str, int], topology: tuple[int, int, int]) -> None:
    """The order in which Nova ranks what is possible."""
    found = plan_processor(Properties({f"hw_cpu_{name}": str(number) for name, number in given.items()}), vcpus, 1024)
    assert (found.sockets, found.cores, found.threads) == topology
    assert found.vcpus == vcpus


def test_limits_that_leave_nothing_are_refused() -> None:
    """The line names the limits."""
    with pytest.raises(InvalidInput, match=r"allow no 8 vCPUs \(sockets \* cores \* threads: 1 \* 2 \* 2\)"):
        plan_processor(Properties({"hw_cpu_max_sockets": "1", "hw_cpu_max_cores": "2", "hw_cpu_max_threads": "2"}), 8, 1024)


@pytest.mark.parametrize(
    ("name", "value"), [("hw_cpu_policy", "fast"), ("hw_cpu_thread_policy", "x"), ("hw_cpu_cores", "0"), ("hw_maxphysaddr_mode", "half")]
)
def test_bad_words_are_refused(name: str, value: str) -> None:
    """Also those of properties that change nothing here."""
    with pytest.raises(InvalidInput, match=f"the image's {name} is '{value}'"):
        plan_processor(Properties({name: value}), 4, 1024)


def test_an_emulated_address_width_needs_bits() -> None:
    """Passthrough needs none, and has none."""
    with pytest.raises(InvalidInput, match="needs hw_maxphysaddr_bits"):
        plan_processor(Properties({"hw_maxphysaddr_mode": "emulate"}), 1, 64)
    found = plan_processor(Properties({"hw_maxphysaddr_mode": "passthrough", "hw_maxphysaddr_bits": "42"}), 1, 64)
    assert (found.address_mode, found.address_bits) == ("passthrough", None)


def test_nodes_share_alike_unless_told_otherwise() -> None:
    """hw_numa_nodes alone divides; with lists each node has what it was given."""
    assert plan_processor(Properties({"hw_numa_nodes": "2"}), 4, 1024).nodes == (Node((0, 1), 512), Node((2, 3), 512))
    given = {"hw_numa_nodes": "2", "hw_numa_cpus.0": "0-3,^2", "hw_numa_cpus.1": "2", "hw_numa_mem.0": "1000", "hw_numa_mem.1": "24"}
    assert plan_processor(Properties(given), 4, 1024).nodes == (Node((0, 1, 3), 1000), Node((2,), 24))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"hw_numa_nodes": "3"}, "cannot be divided"),
        ({"hw_numa_nodes": "0"}, "a number from 1"),
        ({"hw_numa_nodes": "1", "hw_numa_cpus.0": "0-2", "hw_numa_mem.0": "1024"}, "each of the flavor's 4 vCPUs once"),
        ({"hw_numa_nodes": "2", "hw_numa_cpus.0": "0-3", "hw_numa_cpus.1": "3", "hw_numa_mem.0": "1", "hw_numa_mem.1": "1023"}, "vCPUs once"),
        ({"hw_numa_nodes": "1", "hw_numa_cpus.0": "0-3"}, "sum up to the flavor's 1024 MiB"),
        ({"hw_numa_nodes": "1", "hw_numa_cpus.0": "0-3", "hw_numa_mem.0": "512"}, "sum up to the flavor's 1024 MiB"),
        ({"hw_numa_nodes": "1", "hw_numa_cpus.0": "0:3", "hw_numa_mem.0": "1024"}, "a list of vCPUs"),
    ],
)
def test_bad_nodes_are_refused(given: dict[str, str], reason: str) -> None:
    """No vCPU twice or nowhere, no memory too much or too little."""
    with pytest.raises(InvalidInput, match=reason):
        plan_processor(Properties(given), 4, 1024)


@pytest.mark.parametrize(
    ("text", "page"), [("small", None), ("any", None), ("large", 0), ("4", None), ("2048", 2048), ("2MB", 2048), ("1 GiB", 1048576), ("1g", 1048576)]
)
def test_page_sizes_are_kib_unless_they_have_a_unit(text: str, page: int | None) -> None:
    """As in Nova."""
    assert plan_memory(Properties({"hw_mem_page_size": text}), 2048, ()).page == page


@pytest.mark.parametrize(("text", "ram"), [("8", 1024), ("huge", 1024), ("", 1024), ("2048", 1023), ("1GB", 1536)])
def test_page_sizes_that_x86_or_the_flavor_cannot_have_are_refused(text: str, ram: int) -> None:
    """A page size must divide the memory."""
    with pytest.raises(InvalidInput, match="hw_mem_page_size"):
        plan_memory(Properties({"hw_mem_page_size": text}), ram, ())


def test_nodes_are_made_of_whole_pages() -> None:
    """Each node's part counts."""
    with pytest.raises(InvalidInput, match="511 MiB of memory are no multiple"):
        plan_memory(Properties({"hw_mem_page_size": "2048"}), 1024, (Node((0,), 513), Node((1,), 511))[::-1])


def test_locked_memory_needs_a_page_size() -> None:
    """As in Nova."""
    with pytest.raises(InvalidInput, match="needs hw_mem_page_size"):
        plan_memory(Properties({"hw_locked_memory": "yes"}), 1024, ())
    assert plan_memory(Properties({"hw_locked_memory": "yes", "hw_mem_page_size": "any"}), 1024, ()).locked
