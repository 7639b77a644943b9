# cython: language_level=3, auto_pickle=False
"""The roster of a complete round. ``_roster_py.py`` is its pure twin and describes the format."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort

from wire cimport CHECKSUM, MAX_VARINT, Input, checksum_holds, integer, read_varint, with_checksum, write_varint

from zlib import crc32

from rendezvous.api import RendezvousStateError

__all__ = ["Roster"]

cdef enum:
    VERSION = 1
    MAGIC = 3  # bytes: "RR" and the version
    MIN_SHARD = 11
    MIN_NODE = 2
    MAX_NODES = 131072
    MAX_SHARDS = 4096

cdef int64_t MAX_ID = 2**63 - 1

cdef struct Member:
    int64_t node  # its id, from 1 to MAX_ID
    uint32_t rank


cdef int by_node(const void* a, const void* b) noexcept nogil:
    cdef int64_t one = (<const Member*> a).node, other = (<const Member*> b).node
    return (one > other) - (one < other)


cdef inline Py_ssize_t shard_of(Member member, int64_t shards) noexcept:
    # Both are positive: an unsigned division gives the same and is quicker than Cython's signed one.
    return <Py_ssize_t> (<uint64_t> member.node % <uint64_t> shards)


@cython.final
cdef class Shard:
    """Reads one shard, front to back. It owns the bytes that ``input`` points into."""

    cdef bytes data
    cdef Input input
    cdef int64_t world_size, shards, number, count

    def __cinit__(self, data):
        cdef const uint8_t* raw
        cdef Py_ssize_t size
        if type(data) is not bytes:
            raise RendezvousStateError(f"a shard of the roster must be bytes, not {type(data).__name__}")
        self.data = data
        raw = <const uint8_t*> PyBytes_AS_STRING(data)
        size = PyBytes_GET_SIZE(data)
        if size < 2 or raw[0] != 0x52 or raw[1] != 0x52:
            raise RendezvousStateError("the roster does not begin with 'RR': something else wrote it")
        if size < MIN_SHARD:
            raise RendezvousStateError(f"the roster is truncated: it has only {size} bytes")
        if raw[2] != VERSION:
            raise RendezvousStateError(
                f"the roster has format version {raw[2]}, this etcd-rendezvous reads version {VERSION}: "
                f"install the same release on all nodes of a job"
            )
        if not checksum_holds(self.data, crc32):
            raise RendezvousStateError("the roster's checksum is wrong: it is truncated or damaged")
        # size >= MIN_SHARD, so MAGIC <= end, and all of raw[:end] lies within the bytes.
        self.input.raw, self.input.at, self.input.end = raw, MAGIC, size - CHECKSUM
        self.world_size = self.varint(MAX_NODES, "world size")
        self.shards = self.varint(MAX_SHARDS, "number of shards")
        self.number = self.varint(MAX_SHARDS, "shard number")
        self.count = self.varint(self.world_size, "number of nodes")
        if self.number >= self.shards:
            raise RendezvousStateError("the roster's shard number is out of range")
        if self.count * MIN_NODE > self.input.end - self.input.at:
            raise RendezvousStateError(
                f"the roster claims {self.count} nodes, more than its {self.input.end - self.input.at} bytes can hold"
            )

    cdef int64_t varint(self, int64_t largest, str name) except -1:
        return read_varint(&self.input, largest, "roster", name)

    cdef int read(self, int64_t before, Member* member) except -1:
        """Read the next node into ``member``; ``before`` is the id of the node before it, 0 for the first."""
        cdef int64_t step = self.varint(MAX_ID, "node id"), rank
        if step == 0 or before > MAX_ID - step:
            raise RendezvousStateError("the roster's node id is out of range")
        rank = self.varint(MAX_NODES, "rank")
        if rank >= self.world_size:
            raise RendezvousStateError("the roster's rank is out of range")
        member.node = before + step
        member.rank = <uint32_t> rank
        if shard_of(member[0], self.shards) != self.number:
            raise RendezvousStateError(
                f"the roster has node {member.node} in shard {self.number} of {self.shards}, where it does not belong"
            )
        return 0

    cdef int finish(self) except -1:
        if self.input.at != self.input.end:
            raise RendezvousStateError(f"the roster has {self.input.end - self.input.at} bytes too many")
        return 0


@cython.final
cdef class Roster:
    """The nodes of a complete round, by id, in the order of their ranks. It never changes."""

    # members[0] to members[size - 1], in ascending order of id. The ranks are 0 to size - 1, each once.
    cdef Member* members
    cdef Py_ssize_t size

    def __cinit__(self, nodes):
        if type(nodes) is not list:
            raise TypeError(f"the nodes of a roster must be a list, not {type(nodes).__name__}")
        # The size comes from a copy: another thread may change the list.
        cdef tuple ids = tuple(nodes)
        cdef Py_ssize_t at
        if len(ids) > MAX_NODES:
            raise ValueError(f"a roster holds at most {MAX_NODES} nodes")
        self.allocate(len(ids))
        for at in range(self.size):
            self.members[at].node = integer(ids[at], "a node's id", 1, MAX_ID)
            self.members[at].rank = <uint32_t> at
        self.sort()

    def __dealloc__(self):
        PyMem_Free(self.members)

    cdef int allocate(self, Py_ssize_t size) except -1:
        """Replace the members by ``size`` zeroed ones."""
        cdef Member* members = <Member*> PyMem_Calloc(max(size, 1), sizeof(Member))
        if members == NULL:
            raise MemoryError
        PyMem_Free(self.members)
        self.members, self.size = members, size
        return 0

    cdef int sort(self) except -1:
        cdef Py_ssize_t at
        qsort(self.members, self.size, sizeof(Member), by_node)
        for at in range(1, self.size):
            if self.members[at].node == self.members[at - 1].node:
                raise ValueError("a node is in the roster twice")
        return 0

    def __len__(self):
        return self.size

    def nodes(self):
        """Return the ids in the order of the ranks."""
        cdef list found = [None] * self.size
        cdef Py_ssize_t at
        for at in range(self.size):
            found[self.members[at].rank] = self.members[at].node
        return found

    def rank(self, node):
        """Return the rank of the node with the id ``node``, or None if it is not in the roster."""
        cdef int64_t wanted = integer(node, "a node's id", 1, MAX_ID)
        cdef Py_ssize_t low = 0, high = self.size, middle
        while low < high:
            middle = (low + high) // 2
            if self.members[middle].node < wanted:
                low = middle + 1
            else:
                high = middle
        return self.members[low].rank if low < self.size and self.members[low].node == wanted else None

    def encode(self, shards):
        """Return the bytes of each of ``shards`` shards: the same roster always gives the same bytes."""
        cdef int64_t count = integer(shards, "the number of shards", 1, MAX_SHARDS), number
        cdef Py_ssize_t start = 0, largest = 0
        cdef Py_ssize_t* ends = NULL
        cdef Member* grouped = NULL
        cdef uint8_t* buffer = NULL
        cdef uint8_t* end
        cdef list encoded = []
        try:
            ends = <Py_ssize_t*> PyMem_Calloc(count, sizeof(Py_ssize_t))
            grouped = <Member*> PyMem_Calloc(max(self.size, 1), sizeof(Member))
            if ends == NULL or grouped == NULL:
                raise MemoryError
            self.group(count, grouped, ends)
            for number in range(count):
                largest = max(largest, ends[number] - start)
                start = ends[number]
            # The largest shard fits: it has four varints in its header, and two for each node.
            buffer = <uint8_t*> PyMem_Malloc(MAGIC + MAX_VARINT * (4 + 2 * largest))
            if buffer == NULL:
                raise MemoryError
            start = 0
            for number in range(count):
                end = self.write(buffer, number, count, grouped + start, ends[number] - start)
                encoded.append(with_checksum(buffer, end - buffer, crc32))
                start = ends[number]
        finally:
            PyMem_Free(ends)
            PyMem_Free(grouped)
            PyMem_Free(buffer)
        return encoded

    cdef void group(self, int64_t shards, Member* grouped, Py_ssize_t* ends) noexcept:
        """Copy the members into ``grouped`` shard by shard, each in ascending order of id (a counting sort).

        ``grouped`` has room for all members. ``ends``, zeroed, has an element for each shard, and holds afterwards
        where the shard ends in ``grouped``. Takes time for members and shards once, not for their product.
        """
        cdef Py_ssize_t at, shard, size, total = 0
        for at in range(self.size):
            ends[shard_of(self.members[at], shards)] += 1
        for shard in range(shards):
            size = ends[shard]
            ends[shard] = total  # where the shard begins, for now
            total += size
        # Each element of ends now grows by the number of its members, so it ends where the next shard begins, and no
        # index reaches the sum of all, which is the number of members.
        for at in range(self.size):
            shard = shard_of(self.members[at], shards)
            grouped[ends[shard]] = self.members[at]
            ends[shard] += 1

    cdef uint8_t* write(self, uint8_t* out, int64_t number, int64_t shards, const Member* members,
                        Py_ssize_t count) noexcept:
        """Write a shard without its checksum to ``out``, which has room for it; return its end."""
        cdef int64_t before = 0
        cdef Py_ssize_t at
        out[0] = out[1] = 0x52
        out[2] = VERSION
        out = write_varint(out + MAGIC, self.size)
        out = write_varint(out, shards)
        out = write_varint(out, number)
        out = write_varint(out, count)
        for at in range(count):
            # In ascending order, so the difference is never negative.
            out = write_varint(out, members[at].node - before)
            out = write_varint(out, members[at].rank)
            before = members[at].node
        return out

    @classmethod
    def decode(cls, shards):
        """Return the roster that ``shards``, all of them in their order, hold.

        Raises:
            RendezvousStateError: they are not the shards of one roster; the message says why.
        """
        cdef tuple parts = tuple(shards)
        cdef Roster roster = cls([])
        cdef Shard shard
        cdef Member member
        cdef uint8_t* taken = NULL
        cdef int64_t world_size = 0, before
        cdef Py_ssize_t found = 0
        try:
            for number, data in enumerate(parts):
                shard = Shard(data)
                if (shard.number, shard.shards) != (number, len(parts)):
                    raise RendezvousStateError(
                        f"the roster's shard {number} of {len(parts)} is shard {shard.number} of {shard.shards}"
                    )
                if number == 0:
                    # At most MAX_NODES, as Shard has checked: a wrong world size takes 2 MiB and no more.
                    world_size = shard.world_size
                    roster.allocate(world_size)
                    taken = <uint8_t*> PyMem_Calloc(max(world_size, 1), 1)
                    if taken == NULL:
                        raise MemoryError
                elif shard.world_size != world_size:
                    raise RendezvousStateError(
                        f"the roster's shards name world sizes {world_size} and {shard.world_size}"
                    )
                before = 0
                for _ in range(shard.count):
                    # Below the world size of the shard, so taken[member.rank] exists.
                    shard.read(before, &member)
                    if taken[member.rank]:
                        raise RendezvousStateError(f"the roster gives rank {member.rank} twice")
                    taken[member.rank] = 1
                    # Each node found so far has taken another rank below world_size, so found < world_size.
                    roster.members[found] = member
                    found += 1
                    before = member.node
                shard.finish()
        finally:
            PyMem_Free(taken)
        if found != world_size:
            raise RendezvousStateError(f"the roster has {found} of {world_size} nodes")
        roster.sort()
        return roster

    @staticmethod
    def find(data, node):
        """Return the rank of ``node`` in the shard ``data`` (None if it is not there) and the world size.

        Raises:
            RendezvousStateError: ``data`` is not a shard that this version understands; the message says why.
        """
        cdef int64_t wanted = integer(node, "a node's id", 1, MAX_ID), before = 0
        cdef Shard shard = Shard(data)
        cdef Member member
        cdef object rank = None
        for _ in range(shard.count):
            shard.read(before, &member)
            if member.node == wanted:
                rank = member.rank
            before = member.node
        shard.finish()
        return rank, shard.world_size
