# cython: language_level=3, auto_pickle=False
"""The roster of a complete round. ``rendezvous/_core/_roster_py.py``, its twin, describes what and why."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, qsort

from zlib import crc32

from rendezvous.api import RendezvousStateError

__all__ = ["Roster"]

cdef enum:
    VERSION = 1
    CHECKSUM = 4
    MIN_SHARD = 11
    MIN_NODE = 2
    MAX_NODES = 131072
    MAX_SHARDS = 4096
    MAX_VARINT = 9

cdef int64_t MAX_ID = 2**63 - 1

cdef struct Seat:
    int64_t node
    uint32_t rank


cdef int by_node(const void* a, const void* b) noexcept nogil:
    cdef int64_t one = (<const Seat*>a).node, other = (<const Seat*>b).node
    return (one > other) - (one < other)


cdef int64_t integer(object value, str name, int64_t least, int64_t largest) except -1:
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not least <= value <= largest:
        raise ValueError(f"{name} must be from {least} to {largest}, not {value}")
    return value


cdef Py_ssize_t write(uint8_t* out, Py_ssize_t at, int64_t value) noexcept:
    while value > 0x7F:
        out[at] = value & 0x7F | 0x80
        value >>= 7
        at += 1
    out[at] = <uint8_t>value
    return at + 1


@cython.final
cdef class Shard:
    """Reads one shard, front to back."""

    cdef bytes data
    cdef const uint8_t* raw
    cdef Py_ssize_t at, end
    cdef int64_t world_size, shards, number, count

    def __cinit__(self, data):
        if type(data) is not bytes:
            raise RendezvousStateError(f"a shard of the roster must be bytes, not {type(data).__name__}")
        self.data = data
        self.raw = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if size < 2 or self.raw[0] != 0x52 or self.raw[1] != 0x52:
            raise RendezvousStateError("the roster does not begin with 'RR': something else wrote it")
        if size < MIN_SHARD:
            raise RendezvousStateError(f"the roster is truncated: {size} bytes")
        if self.raw[2] != VERSION:
            raise RendezvousStateError(f"the roster has format version {self.raw[2]}; this release reads {VERSION}")
        self.end = size - CHECKSUM
        if crc32(memoryview(self.data)[:self.end]) != int.from_bytes(self.data[self.end:], "little"):
            raise RendezvousStateError("the roster's checksum is wrong: it is truncated or damaged")
        self.at = 3
        self.world_size = self.varint(MAX_NODES, "world size")
        self.shards = self.varint(MAX_SHARDS, "number of shards")
        self.number = self.varint(MAX_SHARDS, "number of the shard")
        self.count = self.varint(self.world_size, "number of nodes")
        if self.number >= self.shards:
            raise RendezvousStateError("the roster's number of the shard is out of range")
        if self.count * MIN_NODE > self.end - self.at:
            raise RendezvousStateError(
                f"the roster claims {self.count} nodes, more than its {self.end - self.at} bytes can hold"
            )

    cdef int64_t varint(self, int64_t largest, str name) except -1:
        cdef int64_t value = 0
        cdef int shift = 0
        cdef uint8_t byte
        while True:
            if self.at >= self.end:
                raise RendezvousStateError(f"the roster ends within its {name}")
            byte = self.raw[self.at]
            self.at += 1
            value |= <int64_t>(byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift == 63:
                raise RendezvousStateError(f"the roster's {name} is out of range")
        if value > largest:
            raise RendezvousStateError(f"the roster's {name} is out of range")
        return value

    cdef Seat seat(self, int64_t before) except *:
        """Return the next node; ``before`` is the one before it, 0 for the first."""
        cdef Seat seat
        cdef int64_t step = self.varint(MAX_ID, "node id")
        if step == 0 or before > MAX_ID - step:
            raise RendezvousStateError("the roster's node id is out of range")
        seat.node = before + step
        cdef int64_t rank = self.varint(MAX_NODES, "rank")
        if rank >= self.world_size:
            raise RendezvousStateError("the roster's rank is out of range")
        if seat.node % self.shards != self.number:
            raise RendezvousStateError(
                f"the roster's node {seat.node} does not belong into shard {self.number} of {self.shards}"
            )
        seat.rank = <uint32_t>rank
        return seat

    cdef int finish(self) except -1:
        if self.at != self.end:
            raise RendezvousStateError(f"the roster has {self.end - self.at} bytes too many")
        return 0


@cython.final
cdef class Roster:
    """The nodes of a complete round, by id, in the order of their ranks."""

    cdef Seat* seats  # in ascending order of id
    cdef Py_ssize_t size

    def __cinit__(self, nodes):
        if type(nodes) is not list:
            raise TypeError(f"the nodes of a roster must be a list, not {type(nodes).__name__}")
        # A copy: checking an element runs no code of others, but another thread may change the list.
        cdef tuple ids = tuple(nodes)
        cdef Py_ssize_t at
        if len(ids) > MAX_NODES:
            raise ValueError(f"a roster holds at most {MAX_NODES} nodes")
        self.allocate(len(ids))
        for at in range(self.size):
            self.seats[at].node = integer(ids[at], "a node's id", 1, MAX_ID)
            self.seats[at].rank = <uint32_t>at
        qsort(self.seats, self.size, sizeof(Seat), by_node)
        for at in range(1, self.size):
            if self.seats[at].node == self.seats[at - 1].node:
                raise ValueError("a node is in the roster twice")

    def __dealloc__(self):
        free(self.seats)

    cdef int allocate(self, Py_ssize_t size) except -1:
        self.seats = <Seat*>calloc(max(size, 1), sizeof(Seat))
        if self.seats == NULL:
            raise MemoryError()
        self.size = size
        return 0

    def __len__(self):
        return self.size

    def nodes(self):
        """Return the ids in the order of the ranks."""
        cdef list found = [None] * self.size
        cdef Py_ssize_t at
        for at in range(self.size):
            found[self.seats[at].rank] = self.seats[at].node
        return found

    def rank(self, node):
        """Return the rank of the node with the id ``node``, or None where it is not in the roster."""
        cdef int64_t wanted = integer(node, "a node's id", 1, MAX_ID)
        cdef Py_ssize_t low = 0, high = self.size, middle
        while low < high:
            middle = (low + high) // 2
            if self.seats[middle].node < wanted:
                low = middle + 1
            else:
                high = middle
        return self.seats[low].rank if low < self.size and self.seats[low].node == wanted else None

    def encode(self, shards):
        """Return the bytes of each of ``shards`` shards: the same roster always gives the same bytes."""
        cdef int64_t count = integer(shards, "the number of shards", 1, MAX_SHARDS)
        return [self.shard(number, count) for number in range(count)]

    cdef bytes shard(self, int64_t number, int64_t shards):
        cdef Py_ssize_t at, inside = 0, length
        cdef int64_t before = 0
        for at in range(self.size):
            inside += self.seats[at].node % shards == number
        # Each node takes at most two varints, the header four.
        cdef uint8_t* out = <uint8_t*>calloc(3 + MAX_VARINT * (4 + 2 * inside), 1)
        if out == NULL:
            raise MemoryError()
        try:
            out[0] = out[1] = 0x52
            out[2] = VERSION
            length = write(out, 3, self.size)
            length = write(out, length, shards)
            length = write(out, length, number)
            length = write(out, length, inside)
            for at in range(self.size):
                if self.seats[at].node % shards == number:
                    length = write(out, length, self.seats[at].node - before)
                    length = write(out, length, self.seats[at].rank)
                    before = self.seats[at].node
            data = out[:length]
        finally:
            free(out)
        return data + crc32(data).to_bytes(CHECKSUM, "little")

    @classmethod
    def decode(cls, shards):
        """Return the roster that ``shards``, all of them in their order, hold."""
        cdef list nodes = []
        cdef Shard shard
        cdef Seat seat
        cdef int64_t before, world_size = 0, found = 0
        cdef Py_ssize_t total = len(shards)
        for number, data in enumerate(shards):
            shard = Shard(data)
            before = 0
            seats = []
            for _ in range(shard.count):
                seat = shard.seat(before)
                seats.append((seat.rank, seat.node))
                before = seat.node
            shard.finish()
            if (shard.number, shard.shards) != (number, total):
                raise RendezvousStateError(
                    f"the roster's shard {number} of {total} is shard {shard.number} of {shard.shards}"
                )
            if number == 0:
                nodes = [None] * shard.world_size
            elif shard.world_size != world_size:
                raise RendezvousStateError(
                    f"the roster's shards name world sizes {world_size} and {shard.world_size}"
                )
            world_size = shard.world_size
            for rank, node in seats:
                if nodes[rank] is not None:
                    raise RendezvousStateError(f"the roster gives rank {rank} twice")
                nodes[rank] = node
                found += 1
        if found != world_size:
            raise RendezvousStateError(f"the roster has {found} of {world_size} nodes")
        return cls(nodes)

    @staticmethod
    def find(data, node):
        """Return the rank of ``node`` in the shard ``data``, None where it is not there, and the world size."""
        cdef int64_t wanted = integer(node, "a node's id", 1, MAX_ID), before = 0
        cdef Shard shard = Shard(data)
        cdef Seat seat
        cdef object rank = None
        for _ in range(shard.count):
            seat = shard.seat(before)
            if seat.node == wanted:
                rank = seat.rank
            before = seat.node
        shard.finish()
        return rank, shard.world_size
