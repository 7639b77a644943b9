# cython: language_level=3
"""Decodes a state, and believes nothing. ``state_format.pxd`` has the constants, ``_state_bytes_py.py`` the format."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from nodes cimport MAX_ADDR, MAX_ID, MAX_NODES, MAX_TIME, PARTICIPANT, Key, Node, Table, compare, key_of, reserve
from state_format cimport (BACK, CLOSED, COMPLETE, DEADLINE, HEADER, LOCAL_ID, MEMBER, MIN_NODE, RANK, ROLE, VERSION,
                           Round)
from wire cimport CHECKSUM, Input, checksum_holds, read_u32, read_varint, refuse

cdef struct Decoder:
    Input input
    Table* table
    int64_t latest  # heartbeat
    Py_ssize_t back  # bytes that the last address shares at its back with the one before
    int64_t next_rank
    int64_t world_size
    uint8_t* taken  # for each rank below world_size, whether a node has it; NULL if the round is not complete


cdef inline int decode(object data, Round* round, Table* table, object crc32) except -1:
    """Fill ``round`` and ``table`` from ``data``. Both are empty, and no other code knows them yet."""
    cdef Decoder decoder
    if type(data) is not bytes:
        refuse(f"the state must be bytes, not {type(data).__name__}")
    decoder.table = table
    decoder.latest = decoder.back = decoder.next_rank = decoder.world_size = 0
    decoder.taken = NULL
    try:
        # The caller's reference keeps the bytes until this returns.
        read(&decoder, read_header(&decoder.input, data, crc32), round)
    finally:
        PyMem_Free(decoder.taken)
    return 0


cdef inline int read_header(Input* data, bytes state, object crc32) except -1:
    """Check the header and the checksum, return the flags, and set ``data`` to the bytes between the two."""
    cdef const uint8_t* raw = <const uint8_t*> PyBytes_AS_STRING(state)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(state)
    cdef int64_t length
    if size > 0 and raw[0] == 0x80:
        refuse(
            "the state is a pickle: a node with torch's own rendezvous uses the same key; give all nodes of a "
            "job the same backend, or this job another run id"
        )
    if (size > 0 and raw[0] != 0x52) or (size > 1 and raw[1] != 0x5A):
        refuse(f"the state was not written by etcd-rendezvous: it starts with {state[:4].hex(' ')}")
    if size < HEADER:
        refuse(f"the state is truncated: {size} bytes are less than its header")
    if raw[2] != VERSION:
        refuse(
            f"the state has format version {raw[2]}, this etcd-rendezvous reads version {VERSION}: "
            f"install the same release on all nodes of a job"
        )
    length = read_u32(raw + 4)
    if size < length:
        refuse(f"the state is truncated: {size} of {length} bytes are there")
    if size > length or length < HEADER + CHECKSUM:
        refuse(f"the state gives its length as {length} bytes, but has {size}")
    if not checksum_holds(state, crc32):
        refuse("the state's checksum is wrong: it was damaged in etcd or on the way")
    if raw[3] & ~(COMPLETE | CLOSED | DEADLINE):
        refuse(f"the state has unknown flags {raw[3]:#04x}")
    # size == length >= HEADER + CHECKSUM, so HEADER <= end, and all of raw[:end] lies within the bytes.
    data.raw, data.at, data.end = raw, HEADER, size - CHECKSUM
    return raw[3]


cdef inline int64_t varint(Decoder* decoder, int64_t largest, str name) except -1:
    return read_varint(&decoder.input, largest, "state", name)


cdef inline int read(Decoder* decoder, int flags, Round* round) except -1:
    cdef Input* data = &decoder.input
    cdef int64_t count, _
    round.number = varint(decoder, MAX_TIME, "round")
    round.started = varint(decoder, MAX_TIME, "start")
    if flags & DEADLINE:
        round.deadline = varint(decoder, MAX_TIME, "deadline")
    round.closed = flags & CLOSED != 0
    round.complete = flags & COMPLETE != 0
    if round.complete:
        round.world_size = varint(decoder, MAX_ID, "world size")
    decoder.latest = varint(decoder, MAX_TIME, "latest heartbeat")
    count = read_count(decoder, round.world_size)
    # The bytes that are there limit both numbers, and with them the memory that is allocated here.
    reserve(decoder.table, count, 0)
    if round.complete:
        decoder.world_size = round.world_size
        decoder.taken = <uint8_t*> PyMem_Calloc(round.world_size + 1, 1)
        if decoder.taken == NULL:
            raise MemoryError
    for _ in range(count):
        read_node(decoder)
    if data.at != data.end:
        refuse(f"the state has {data.end - data.at} bytes after its last node: it is malformed")
    return 0


cdef inline int64_t read_count(Decoder* decoder, int64_t world_size) except -1:
    """Read the number of nodes, and check it against the bytes that are left and the world size."""
    cdef int64_t count = varint(decoder, MAX_TIME, "number of nodes")
    cdef Py_ssize_t left = decoder.input.end - decoder.input.at
    if count > MAX_NODES:
        refuse(f"the state claims {count} nodes, more than {MAX_NODES}")
    if count > left // MIN_NODE:
        refuse(f"the state claims {count} nodes in {left} bytes: it is malformed")
    if world_size > count:
        refuse(f"the state has a world of {world_size}, but only {count} nodes: it is malformed")
    return count


cdef inline int read_node(Decoder* decoder) except -1:
    """Read the next node, check that it comes after the one before, and append it."""
    cdef Table* table = decoder.table
    cdef Input* data = &decoder.input
    cdef Node* node
    cdef Py_ssize_t front
    cdef int64_t age
    cdef int tag
    if data.at >= data.end:
        refuse("the state ends within its node: it is malformed")
    tag = data.raw[data.at]
    data.at += 1
    if tag & ~(ROLE | MEMBER | LOCAL_ID | RANK | BACK):
        refuse(f"the state has a node with unknown tag {tag:#04x}")
    front = read_address(decoder, tag & BACK != 0)
    # read_address() has made room for one node more, and nothing below moves the table.
    node = &table.nodes[table.size]
    node.role = tag & ROLE
    node.member = tag & MEMBER != 0
    node.pid = <uint32_t> varint(decoder, MAX_ID, "pid")
    node.local_id = <uint32_t> varint(decoder, MAX_ID, "local id") if tag & LOCAL_ID else 0
    age = varint(decoder, MAX_TIME, "heartbeat")
    if age > decoder.latest:
        refuse("the state has a heartbeat before the epoch")
    node.heartbeat = decoder.latest - age
    node.rank = <uint32_t> read_rank(decoder, tag & RANK != 0, node.role)
    if table.size > 0:
        check_order(table, front)
    table.counts[node.role] += 1
    table.size += 1
    return 0


cdef inline int check_order(const Table* table, Py_ssize_t front) except -1:
    """Check that the node at ``size``, which is not counted yet, comes after the last one.

    ``front`` bytes of its address are copies of those of the last one: they need not be compared.
    """
    cdef Key before = key_of(table, &table.nodes[table.size - 1])
    cdef Key key = key_of(table, &table.nodes[table.size])
    cdef int order = compare(&before, &key, front)
    if order >= 0:
        addr = PyUnicode_DecodeUTF8(<const char*> key.addr, key.length, NULL)
        name = f"{addr}_{key.pid}_{key.local_id}"
        refuse(f"the state has the node {name!r} {'twice' if order == 0 else 'out of order'}")
    return 0


cdef inline Py_ssize_t read_address(Decoder* decoder, bint explicit) except -1:
    """Read the address of the next node into the arena; return how many bytes it shares at the front."""
    cdef Table* table = decoder.table
    cdef Input* data = &decoder.input
    # None of the three is more than MAX_ADDR, so their sum does not overflow.
    cdef Py_ssize_t front = varint(decoder, MAX_ADDR, "address")
    cdef Py_ssize_t back = varint(decoder, MAX_ADDR, "address") if explicit else decoder.back
    cdef Py_ssize_t middle = varint(decoder, MAX_ADDR, "address")
    cdef Py_ssize_t length = front + back + middle, before_length = 0, at
    cdef const uint8_t* before
    cdef uint8_t* addr
    cdef uint8_t bits = 0
    if table.size > 0:
        before_length = table.nodes[table.size - 1].length
    if front + back > before_length or not 1 <= length <= MAX_ADDR:
        refuse("the state has an address of impossible length")
    if middle > data.end - data.at:
        refuse("the state ends within its address: it is malformed")
    reserve(table, table.size + 1, length)
    # There is room for length bytes at the end of the arena; front and back lie within the address before.
    addr = table.arena + table.arena_size
    if table.size > 0:
        before = table.arena + table.nodes[table.size - 1].addr
        memcpy(addr, before, front)
        memcpy(addr + front + middle, before + before_length - back, back)
    memcpy(addr + front, data.raw + data.at, middle)
    data.at += middle
    decoder.back = back
    for at in range(length):
        bits |= addr[at]
    if bits >= 0x80:
        check_utf8(addr, length)
    table.nodes[table.size].addr = <uint32_t> table.arena_size
    table.nodes[table.size].length = <uint8_t> length
    table.arena_size += length
    return front


cdef inline int check_utf8(const uint8_t* addr, Py_ssize_t length) except -1:
    try:
        PyUnicode_DecodeUTF8(<const char*> addr, length, NULL)
        return 0
    except UnicodeDecodeError:
        pass
    return refuse("the state has an address that is not UTF-8")


cdef inline int64_t read_rank(Decoder* decoder, bint explicit, int role) except -1:
    """Return the rank of a node, if it has one, else 0; ``explicit`` means that it is in the bytes."""
    cdef int64_t rank
    if decoder.taken == NULL or role != PARTICIPANT:
        if explicit:
            refuse("the state has a rank for a node that takes no part")
        return 0
    rank = varint(decoder, MAX_ID, "rank") if explicit else decoder.next_rank
    if rank >= decoder.world_size:
        refuse(f"the state has rank {rank} in a world of {decoder.world_size}")
    # Below world_size, which is the size of taken.
    if decoder.taken[rank]:
        refuse(f"the state has rank {rank} twice")
    decoder.taken[rank] = 1
    decoder.next_rank = rank + 1
    return rank
