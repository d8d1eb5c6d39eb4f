"""This module plans vCPUs and memory: topology, NUMA nodes, huge pages. Pure."""

import re
from typing import Final

from imagefs.cli.machine.model import Memory, Node, Processor
from imagefs.errors import InvalidInput
from imagefs.instances.properties import Properties

_LIMIT: Final = 2**16
"""Nova's for sockets, cores and threads that an image does not limit."""
_NODES: Final = 128
_PAGES: Final = {4: None, 2048: 2048, 1048576: 1048576}
"""The page sizes of x86 in KiB; 4 is the ordinary one."""
_PAGE_WORDS: Final = {"small": None, "any": None, "large": 0}
_SIZE: Final = re.compile(r"(\d{1,9})\s*(|k|m|g|ki|mi|gi|kb|mb|gb|kib|mib|gib)", re.IGNORECASE | re.ASCII)
_RANGE: Final = re.compile(r"(\^?)(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def plan_processor(image: Properties, vcpus: int, ram: int) -> Processor:
    """Return the vCPUs as Nova lays them out. Raises InvalidInput for limits within which there are no `vcpus`, and for bad NUMA nodes."""
    # who pins vCPUs does so with taskset or libvirt, on a host that it knows; the words are checked as Nova checks them
    image.optional("hw_cpu_policy", ("dedicated", "shared", "mixed"))
    image.optional("hw_cpu_thread_policy", ("prefer", "isolate", "require"))
    sockets, cores, threads = _topology(image, vcpus)
    mode = image.optional("hw_maxphysaddr_mode", ("passthrough", "emulate"))
    bits = image.number("hw_maxphysaddr_bits", 32, 52)
    if mode == "emulate" and bits is None:
        raise InvalidInput("the image's hw_maxphysaddr_mode is 'emulate': it needs hw_maxphysaddr_bits as well")
    return Processor(
        sockets,
        cores,
        threads,
        pmu=image.boolean("hw_pmu"),
        hide_hypervisor=image.is_on("img_hide_hypervisor_id"),
        address_mode=mode,
        address_bits=bits if mode == "emulate" else None,
        nodes=_nodes(image, vcpus, ram),
    )


def plan_memory(image: Properties, ram: int, nodes: tuple[Node, ...]) -> Memory:
    """Return the memory. Raises InvalidInput for a page size that x86 has not, or that does not divide the memory."""
    text = image.text("hw_mem_page_size")
    page = _page(text) if text is not None else None
    locked = image.is_on("hw_locked_memory")
    if locked and text is None:
        raise InvalidInput("the image's hw_locked_memory is on: as in Nova it needs hw_mem_page_size as well")
    for part in [node.ram for node in nodes] or [ram]:
        if page and part * 1024 % page:
            raise InvalidInput(f"the image's hw_mem_page_size is '{text}': {part} MiB of memory are no multiple of it")
    return Memory(ram, locked, page)


def _topology(image: Properties, vcpus: int) -> tuple[int, int, int]:
    wanted = [image.number(f"hw_cpu_{part}", 1, _LIMIT) for part in ("sockets", "cores", "threads")]
    limits = [image.number(f"hw_cpu_max_{part}", 1, _LIMIT) or _LIMIT for part in ("sockets", "cores", "threads")]
    factors = [number for number in range(1, vcpus + 1) if vcpus % number == 0]
    possible = [(sockets, cores, vcpus // sockets // cores) for sockets in factors for cores in factors if vcpus // sockets % cores == 0]
    possible = [found for found in possible if all(number <= limit for number, limit in zip(found, limits, strict=True))]
    if not possible:
        limit = " * ".join("any" if number == _LIMIT else str(number) for number in limits)
        raise InvalidInput(f"the image's hw_cpu_max_* allow no {vcpus} vCPUs (sockets * cores * threads: {limit}): choose another flavor")

    def fitness(found: tuple[int, int, int]) -> tuple[int, int, int]:
        """As Nova: as many wishes as can be, then few threads, then many sockets."""
        met = sum(number == wish for number, wish in zip(found, wanted, strict=True))
        return met, found[0] * found[1], found[0]

    return max(possible, key=fitness)


def _nodes(image: Properties, vcpus: int, ram: int) -> tuple[Node, ...]:
    count = image.number("hw_numa_nodes", 1, _NODES)
    if count is None:
        return ()
    given = [image.text(f"hw_numa_cpus.{number}") for number in range(count)]
    if all(text is None for text in given) and image.text("hw_numa_mem.0") is None:
        if vcpus % count or ram % count:
            raise InvalidInput(f"the image's hw_numa_nodes is {count}: {vcpus} vCPUs and {ram} MiB cannot be divided among so many")
        share = vcpus // count
        return tuple(Node(tuple(range(number * share, (number + 1) * share)), ram // count) for number in range(count))
    sizes = [image.number(f"hw_numa_mem.{number}", 1, ram) or 0 for number in range(count)]
    nodes = tuple(Node(_vcpus(f"hw_numa_cpus.{number}", given[number]), sizes[number]) for number in range(count))
    if sorted(number for node in nodes for number in node.vcpus) != list(range(vcpus)):
        raise InvalidInput(f"the image's hw_numa_cpus.* must name each of the flavor's {vcpus} vCPUs once, counted from 0")
    if sum(sizes) != ram or not all(sizes):
        raise InvalidInput(f"the image's hw_numa_mem.* must sum up to the flavor's {ram} MiB, with some for each node")
    return nodes


def _vcpus(name: str, text: str | None) -> tuple[int, ...]:
    """Return the vCPUs of a list such as `0-3,^2,8`."""
    found: set[int] = set()
    excluded: set[int] = set()
    for rule in filter(None, (part.strip() for part in (text or "").split(","))):
        match = _RANGE.fullmatch(rule)
        if match is None:
            raise InvalidInput(f"the image's {name} is '{text}': it must be a list of vCPUs such as 0-3,^2,8")
        numbers = range(int(match[2]), int(match[3] or match[2]) + 1)
        (excluded if match[1] else found).update(numbers)
    return tuple(sorted(found - excluded))


def _page(text: str) -> int | None:
    if text in _PAGE_WORDS:
        return _PAGE_WORDS[text]
    match = _SIZE.fullmatch(text)
    if match is not None:
        kib = int(match[1]) * {"k": 1, "m": 1024, "g": 1024 * 1024}.get(match[2][:1].lower(), 1)
        if kib in _PAGES:
            return _PAGES[kib]
    raise InvalidInput(f"the image's hw_mem_page_size is '{text}': it must be small, large, any, or 4, 2048 or 1048576 (KiB)")
