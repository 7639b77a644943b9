# cython: language_level=3
"""The table of nodes behind ``State``: one C array in natural order of address, pid and local id.

Every function is ``cdef inline``, so the table, its encoder and decoder, and ``State`` are compiled into one
extension: the compiler sees through the calls between them, as it could not between extension modules, and a table
needs no Python object. Nothing here runs Python code, except to raise an exception: so no other code can change a
table while a function works on it.

What always holds for a Table, and what the pointers below rely on:

- ``nodes[0]`` to ``nodes[size - 1]`` are set, and ``size <= capacity <= MAX_NODES * 2``.
- The address of each of them is ``arena[addr]`` to ``arena[addr + length - 1]``, with ``1 <= length <= MAX_ADDR`` and
  ``addr + length <= arena_size <= arena_capacity < 2**32``.
- ``counts[role]`` is the number of nodes with that role; a role is 0 to 3.

The addresses of removed nodes stay in the arena until ``compact`` makes a new one.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove, memset

cdef enum:
    # Roles.
    PARTICIPANT = 0
    WAITING = 1
    REDUNDANT = 2
    MISSING = 3

cdef enum:
    MAX_ADDR = 255  # bytes
    MAX_NODES = 131072

# Too large for the int of a cdef enum.
cdef extern from *:
    """
    #define RENDEZVOUS_MAX_ID INT64_C(0xFFFFFFFF)
    #define RENDEZVOUS_MAX_TIME INT64_C(0x1FFFFFFFFFFFFF)
    """
    const int64_t MAX_ID "RENDEZVOUS_MAX_ID"  # 2**32 - 1, for pid and local id
    const int64_t MAX_TIME "RENDEZVOUS_MAX_TIME"  # 2**53 - 1, for heartbeats

cdef struct Node:
    int64_t heartbeat
    uint32_t addr  # where the address begins in the arena
    uint32_t pid
    uint32_t local_id
    uint32_t rank
    uint8_t length  # of the address
    uint8_t role
    uint8_t member  # of the last complete round

cdef struct Key:
    # What identifies a node, and orders it. It does not own the address: whoever makes a Key keeps the bytes.
    const uint8_t* addr
    Py_ssize_t length
    uint32_t pid
    uint32_t local_id

cdef struct Table:
    Node* nodes
    Py_ssize_t size
    Py_ssize_t capacity
    uint8_t* arena
    Py_ssize_t arena_size
    Py_ssize_t arena_capacity
    Py_ssize_t[4] counts


# The order.

cdef inline bint is_digit(uint8_t byte) noexcept:
    return 48 <= byte <= 57


cdef inline Py_ssize_t digits_end(const Key* key, Py_ssize_t at) noexcept:
    """Return the position of the first byte from ``at`` on that is not a digit, or the length."""
    while at < key.length and is_digit(key.addr[at]):
        at += 1
    return at


cdef inline int compare_natural(const Key* a, const Key* b, Py_ssize_t shared) noexcept:
    """Order two addresses whose first ``shared`` bytes are the same, as ``utils.natural_key`` does.

    ``i`` and ``j`` never pass the lengths: a byte is read only after a comparison with them.
    """
    cdef Py_ssize_t i, j, end_a, end_b
    cdef bint ends_a, ends_b
    cdef int order
    # A number is compared from its first digit.
    while shared > 0 and is_digit(a.addr[shared - 1]):
        shared -= 1
    i = j = shared
    while True:
        ends_a = i == a.length or is_digit(a.addr[i])
        ends_b = j == b.length or is_digit(b.addr[j])
        if ends_a and ends_b:
            if i == a.length or j == b.length:
                return (i < a.length) - (j < b.length)
            end_a, end_b = digits_end(a, i), digits_end(b, j)
            while i < end_a and a.addr[i] == 48:
                i += 1
            while j < end_b and b.addr[j] == 48:
                j += 1
            # Without leading zeros, the number with more digits is the greater one.
            if end_a - i != end_b - j:
                return 1 if end_a - i > end_b - j else -1
            order = memcmp(a.addr + i, b.addr + j, end_a - i)
            if order != 0:
                return 1 if order > 0 else -1
            i, j = end_a, end_b
        elif ends_a:
            return -1
        elif ends_b:
            return 1
        elif a.addr[i] != b.addr[j]:
            return 1 if a.addr[i] > b.addr[j] else -1
        else:
            i += 1
            j += 1


cdef inline int compare(const Key* a, const Key* b, Py_ssize_t shared) noexcept:
    """Order two nodes: by address in natural order, then by its bytes, then by pid and local id.

    ``shared`` is a number of bytes, at most the shorter length, that are the same at the front of both addresses.
    """
    cdef int order = 0
    if not (a.length == b.length == shared):
        order = compare_natural(a, b, shared)
        if order == 0:
            order = memcmp(a.addr, b.addr, min(a.length, b.length))
        if order == 0:
            order = (a.length > b.length) - (a.length < b.length)
    if order == 0:
        order = (a.pid > b.pid) - (a.pid < b.pid)
    if order == 0:
        order = (a.local_id > b.local_id) - (a.local_id < b.local_id)
    return order


# Looking up.

cdef inline Key key_of(const Table* table, const Node* node) noexcept:
    cdef Key key
    key.addr = table.arena + node.addr
    key.length = node.length
    key.pid = node.pid
    key.local_id = node.local_id
    return key


cdef inline int compare_at(const Table* table, const Key* key, Py_ssize_t at) noexcept:
    """Order ``key`` and the node at ``at``, which exists."""
    cdef Key other = key_of(table, &table.nodes[at])
    return compare(key, &other, 0)


cdef inline Py_ssize_t bisect(const Table* table, const Key* key) noexcept:
    """Return the position of ``key``, or where it must be inserted: from 0 to ``size``."""
    cdef Py_ssize_t low = 0, high = table.size, middle
    while low < high:
        middle = (low + high) // 2
        if compare_at(table, key, middle) > 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline Py_ssize_t find(const Table* table, const Key* key) noexcept:
    """Return the position of ``key``, or -1 if the table does not have it."""
    cdef Py_ssize_t at = bisect(table, key)
    return at if at < table.size and compare_at(table, key, at) == 0 else -1


cdef inline bint same_address(const Table* table, const Key* key, Py_ssize_t at) noexcept:
    cdef const Node* node = &table.nodes[at]
    return node.length == key.length and memcmp(table.arena + node.addr, key.addr, key.length) == 0


cdef inline Py_ssize_t missing_at(const Table* table, const Key* key, Py_ssize_t at) noexcept:
    """Return the position of the first missing node with the address of ``key``, whose position is ``at``, or -1."""
    while at > 0 and same_address(table, key, at - 1):
        at -= 1
    while at < table.size and same_address(table, key, at):
        if table.nodes[at].role == MISSING:
            return at
        at += 1
    return -1


# Memory.

cdef inline void release(Table* table) noexcept:
    PyMem_Free(table.nodes)
    PyMem_Free(table.arena)


cdef inline int reserve(Table* table, Py_ssize_t nodes, Py_ssize_t addr_bytes) except -1:
    """Make room for ``nodes`` nodes in all, and for ``addr_bytes`` more bytes of addresses.

    Pointers into the table are invalid afterwards.
    """
    cdef void* memory
    cdef Py_ssize_t wanted
    if nodes > table.capacity:
        # At most MAX_NODES nodes are ever asked for, so no product below overflows.
        wanted = max(nodes, 2 * table.capacity)
        memory = PyMem_Realloc(table.nodes, wanted * sizeof(Node))
        if memory == NULL:
            raise MemoryError
        table.nodes = <Node*> memory
        table.capacity = wanted
    if addr_bytes > table.arena_capacity - table.arena_size:
        compact(table, addr_bytes)
    return 0


cdef inline int compact(Table* table, Py_ssize_t addr_bytes) except -1:
    """Move the addresses in use to a new arena with room for as many again and ``addr_bytes`` more.

    ``used`` is at most MAX_NODES * MAX_ADDR, 32 MiB, so an offset in the arena always fits a uint32_t.
    """
    cdef Py_ssize_t at, used = 0, capacity
    cdef uint8_t* memory
    cdef Node* node
    for at in range(table.size):
        used += table.nodes[at].length
    capacity = 2 * used + addr_bytes
    memory = <uint8_t*> PyMem_Malloc(capacity)
    if memory == NULL:
        raise MemoryError
    used = 0
    for at in range(table.size):
        node = &table.nodes[at]
        # The lengths are those that were added up above.
        memcpy(memory + used, table.arena + node.addr, node.length)
        node.addr = <uint32_t> used
        used += node.length
    PyMem_Free(table.arena)
    table.arena, table.arena_size, table.arena_capacity = memory, used, capacity
    return 0


# Changing.

cdef inline void remove(Table* table, Py_ssize_t at) noexcept:
    """Remove the node at ``at``."""
    table.counts[table.nodes[at].role] -= 1
    table.size -= 1
    memmove(&table.nodes[at], &table.nodes[at + 1], (table.size - at) * sizeof(Node))


cdef inline void mark_missing(Table* table, Py_ssize_t at) noexcept:
    table.counts[table.nodes[at].role] -= 1
    table.counts[<int> MISSING] += 1
    table.nodes[at].role = MISSING
    table.nodes[at].rank = 0


cdef inline int put(Table* table, const Key* key, uint8_t role, int64_t heartbeat) except -1:
    """Give ``key`` a role and a heartbeat; insert it if it is new."""
    cdef Py_ssize_t at = bisect(table, key)
    cdef Node* node
    if at == table.size or compare_at(table, key, at) != 0:
        at = insert(table, key, at)
    else:
        table.counts[table.nodes[at].role] -= 1
    node = &table.nodes[at]
    node.role = role
    node.rank = 0
    node.heartbeat = heartbeat
    table.counts[role] += 1
    return 0


cdef inline Py_ssize_t insert(Table* table, const Key* key, Py_ssize_t at) except -1:
    """Insert ``key``, whose place in the order is ``at``; return its position. The caller counts its role."""
    cdef Py_ssize_t lost = -1
    cdef Node* node
    if table.size >= MAX_NODES:
        raise ValueError(f"a state holds at most {MAX_NODES} nodes")
    reserve(table, table.size + 1, key.length)
    # A process that starts again on its host replaces the one that is missing there.
    if table.counts[<int> MISSING] > 0:
        lost = missing_at(table, key, at)
        if lost >= 0:
            remove(table, lost)
            if lost < at:
                at -= 1
    # reserve() has made room for one node after the last one, and for the address at the end of the arena.
    memmove(&table.nodes[at + 1], &table.nodes[at], (table.size - at) * sizeof(Node))
    memcpy(table.arena + table.arena_size, key.addr, key.length)
    node = &table.nodes[at]
    memset(node, 0, sizeof(Node))
    node.addr = <uint32_t> table.arena_size
    node.length = <uint8_t> key.length
    node.pid = key.pid
    node.local_id = key.local_id
    node.member = lost >= 0
    table.arena_size += key.length
    table.size += 1
    return at


cdef inline void expire(Table* table, int64_t before) noexcept:
    """Remove the nodes that are not missing and whose heartbeat is older; members become missing instead."""
    cdef Py_ssize_t at, kept = 0
    for at in range(table.size):
        if table.nodes[at].role != MISSING and table.nodes[at].heartbeat < before:
            if not table.nodes[at].member:
                table.counts[table.nodes[at].role] -= 1
                continue
            mark_missing(table, at)
        if kept != at:
            table.nodes[kept] = table.nodes[at]
        kept += 1
    table.size = kept


cdef inline uint32_t give_ranks(Table* table) noexcept:
    """Give ranks from 0 on to the participants, remove the missing, and return the number of participants."""
    cdef Py_ssize_t at, kept = 0
    cdef uint32_t rank = 0
    cdef Node* node
    for at in range(table.size):
        node = &table.nodes[at]
        if node.role == MISSING:
            continue
        node.member = node.role == PARTICIPANT
        if node.member:
            node.rank = rank
            rank += 1
        if kept != at:
            table.nodes[kept] = node[0]
        kept += 1
    table.size = kept
    table.counts[<int> MISSING] = 0
    return rank
