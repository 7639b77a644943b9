# cython: language_level=3
"""Encodes a state. ``state_format.pxd`` has the constants, ``_state_bytes_py.py`` describes the format."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from nodes cimport PARTICIPANT, Node, Table
from state_format cimport (BACK, CLOSED, COMPLETE, DEADLINE, HEADER, LOCAL_ID, MAX_NODE, MAX_PREAMBLE, MEMBER, RANK,
                           VERSION, Round)
from wire cimport CHECKSUM, write_u32, write_varint


cdef inline Py_ssize_t encoded_size(const Table* table) noexcept:
    """Return the number of bytes that ``encode`` writes at most."""
    cdef Py_ssize_t at, size = MAX_PREAMBLE + table.size * MAX_NODE
    for at in range(table.size):
        size += table.nodes[at].length
    return size


cdef inline uint8_t* encode(uint8_t* out, const Round* round, const Table* table) noexcept:
    """Write the state to ``out``, which has room for ``encoded_size`` bytes; return the end.

    The length in the header includes the checksum, which the caller appends.
    """
    cdef uint8_t* start = out
    cdef int64_t latest = 0
    cdef Py_ssize_t at
    for at in range(table.size):
        latest = max(latest, table.nodes[at].heartbeat)
    memset(out, 0, HEADER)
    out[0] = 0x52
    out[1] = 0x5A
    out[2] = VERSION
    out[3] = round.complete * COMPLETE | round.closed * CLOSED | (round.deadline >= 0) * DEADLINE
    out = write_varint(out + HEADER, round.number)
    out = write_varint(out, round.started)
    if round.deadline >= 0:
        out = write_varint(out, round.deadline)
    if round.complete:
        out = write_varint(out, round.world_size)
    out = write_varint(out, latest)
    out = write_varint(out, table.size)
    out = encode_nodes(out, table, round.complete, latest)
    write_u32(start + 4, <uint32_t> (out - start + CHECKSUM))
    return out


cdef inline uint8_t* encode_nodes(uint8_t* out, const Table* table, bint complete, int64_t latest) noexcept:
    cdef Py_ssize_t at, length, most, before_length = 0, front = 0, back = 0, before_back = 0
    cdef const uint8_t* addr
    cdef const uint8_t* before = table.arena
    cdef uint32_t next_rank = 0
    cdef bint ranked, explicit
    cdef const Node* node
    for at in range(table.size):
        node = &table.nodes[at]
        addr = table.arena + node.addr
        length = node.length
        ranked = complete and node.role == PARTICIPANT
        explicit = ranked and node.rank != next_rank
        # front + back is at most the shorter length, so what is written of the address is at most all of it.
        most = min(length, before_length)
        front = shared_front(addr, before, front, most)
        back = shared_back(addr + length, before + before_length, back, most - front)
        out[0] = (node.role | node.member * MEMBER | (node.local_id != 0) * LOCAL_ID | explicit * RANK
                  | (back != before_back) * BACK)
        out = write_varint(out + 1, front)
        if back != before_back:
            out = write_varint(out, back)
        before_back = back
        out = write_varint(out, length - front - back)
        memcpy(out, addr + front, length - front - back)
        out = write_varint(out + (length - front - back), node.pid)
        if node.local_id != 0:
            out = write_varint(out, node.local_id)
        out = write_varint(out, latest - node.heartbeat)
        if explicit:
            out = write_varint(out, node.rank)
        if ranked:
            next_rank = node.rank + 1
        before, before_length = addr, length
    return out


# Both begin with a guess, how many bytes the node before shared: names of hosts differ at the same place.

cdef inline Py_ssize_t shared_front(const uint8_t* a, const uint8_t* b, Py_ssize_t guess, Py_ssize_t most) noexcept:
    """Return how many bytes, at most ``most``, are the same at the front; ``most`` can be read from both."""
    cdef Py_ssize_t count = guess if guess <= most and memcmp(a, b, guess) == 0 else 0
    while count < most and a[count] == b[count]:
        count += 1
    return count


cdef inline Py_ssize_t shared_back(const uint8_t* a, const uint8_t* b, Py_ssize_t guess, Py_ssize_t most) noexcept:
    """Return how many bytes, at most ``most``, are the same before the ends ``a`` and ``b``."""
    cdef Py_ssize_t count = guess if guess <= most and memcmp(a - guess, b - guess, guess) == 0 else 0
    while count < most and a[-1 - count] == b[-1 - count]:
        count += 1
    return count
