# cython: language_level=3, auto_pickle=False
"""The round's state: a table of nodes, and its bytes. ``_state_py`` is its pure twin and describes the format.

The table is one C array in natural order of address, pid and local id; addresses stand in one arena of bytes. A
node is found by bisection. Only what a caller asks for becomes a Python object.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from zlib import crc32

from rendezvous.api import RendezvousStateError

__all__ = ["State"]

cdef enum:
    PARTICIPANT = 0
    WAITING = 1
    REDUNDANT = 2
    MISSING = 3

cdef enum:
    VERSION = 1
    COMPLETE = 1
    CLOSED = 2
    DEADLINE = 4
    MEMBER = 4
    LOCAL_ID = 8
    RANK = 16
    BACK = 32
    HEADER = 8
    CHECKSUM = 4
    MIN_NODE = 5
    MAX_ADDR = 255
    MAX_NODES = 131072
    # What encode() writes at most: before the nodes, and for each node beside its address.
    MAX_PREAMBLE = 64
    MAX_NODE = 32

cdef int64_t MAX_ID = 2**32 - 1
cdef int64_t MAX_TIME = 2**53 - 1

cdef struct Node:
    int64_t heartbeat
    uint32_t addr  # where the address starts in the arena
    uint32_t pid
    uint32_t local_id
    uint32_t rank
    uint8_t length  # of the address
    uint8_t role
    uint8_t member


cdef inline bint is_digit(uint8_t byte) noexcept:
    return 48 <= byte <= 57


cdef int compare_natural(const uint8_t* a, Py_ssize_t len_a, const uint8_t* b, Py_ssize_t len_b,
                         Py_ssize_t shared) noexcept:
    """Order two addresses whose first ``shared`` bytes are the same, as ``utils.natural_key`` does."""
    cdef Py_ssize_t i, j, end_a, end_b
    cdef bint ends_a, ends_b
    cdef int order
    while shared > 0 and is_digit(a[shared - 1]):
        shared -= 1
    i = j = shared
    while True:
        ends_a = i == len_a or is_digit(a[i])
        ends_b = j == len_b or is_digit(b[j])
        if ends_a and ends_b:
            if i == len_a or j == len_b:
                return (i < len_a) - (j < len_b)
            end_a, end_b = i, j
            while end_a < len_a and is_digit(a[end_a]):
                end_a += 1
            while end_b < len_b and is_digit(b[end_b]):
                end_b += 1
            while i < end_a and a[i] == 48:
                i += 1
            while j < end_b and b[j] == 48:
                j += 1
            if end_a - i != end_b - j:
                return 1 if end_a - i > end_b - j else -1
            order = memcmp(a + i, b + j, end_a - i)
            if order != 0:
                return 1 if order > 0 else -1
            i, j = end_a, end_b
        elif ends_a:
            return -1
        elif ends_b:
            return 1
        elif a[i] != b[j]:
            return 1 if a[i] > b[j] else -1
        else:
            i += 1
            j += 1


cdef int compare_bytes(const uint8_t* a, Py_ssize_t len_a, const uint8_t* b, Py_ssize_t len_b) noexcept:
    cdef int order = memcmp(a, b, min(len_a, len_b))
    if order != 0:
        return 1 if order > 0 else -1
    return (len_a > len_b) - (len_a < len_b)


cdef int compare_places(const uint8_t* a, Py_ssize_t len_a, int64_t pid_a, int64_t local_a,
                        const uint8_t* b, Py_ssize_t len_b, int64_t pid_b, int64_t local_b,
                        Py_ssize_t shared) noexcept:
    """Order two nodes: by address, naturally, then by its bytes, then by pid and local id."""
    cdef int order = 0
    if not (len_a == len_b == shared):
        order = compare_natural(a, len_a, b, len_b, shared)
        if order == 0:
            order = compare_bytes(a, len_a, b, len_b)
    if order == 0:
        order = (pid_a > pid_b) - (pid_a < pid_b)
    if order == 0:
        order = (local_a > local_b) - (local_a < local_b)
    return order


cdef int64_t integer(object value, str name, int64_t largest) except -1:
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 0 <= value <= largest:
        raise ValueError(f"{name} must be from 0 to {largest}, not {value}")
    return value


cdef int64_t role_of(object role) except -1:
    return integer(int(role) if isinstance(role, int) else role, "role", MISSING)


@cython.final
cdef class Place:
    """A node that a caller named, checked. It owns the bytes of the address."""

    cdef bytes raw
    cdef const uint8_t* addr
    cdef Py_ssize_t length
    cdef int64_t pid
    cdef int64_t local_id

    def __cinit__(self, object node):
        if not isinstance(node, tuple) or len(node) != 3:
            raise TypeError("a node must be a tuple of address, pid and local id")
        addr, pid, local_id = node
        if type(addr) is not str:
            raise TypeError(f"a node's address must be a str, not {type(addr).__name__}")
        try:
            self.raw = addr.encode()
        except UnicodeEncodeError:
            raise ValueError("a node's address must be encodable as UTF-8") from None
        self.length = PyBytes_GET_SIZE(self.raw)
        if not 1 <= self.length <= MAX_ADDR:
            raise ValueError(f"a node's address must take from 1 to {MAX_ADDR} bytes, not {self.length}")
        self.addr = <const uint8_t*> PyBytes_AS_STRING(self.raw)
        self.pid = integer(pid, "a node's pid", MAX_ID)
        self.local_id = integer(local_id, "a node's local id", MAX_ID)


@cython.final
cdef class State:
    """The state of one rendezvous. Times are milliseconds since the epoch; a node is (address, pid, local id)."""

    cdef Node* table
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity
    cdef uint8_t* arena
    cdef Py_ssize_t arena_size
    cdef Py_ssize_t arena_capacity
    cdef Py_ssize_t[4] counts
    cdef int64_t _round
    cdef int64_t _started
    cdef int64_t _deadline
    cdef int64_t _world_size
    cdef bint _complete
    cdef bint _closed

    def __cinit__(self, *arguments, **names):
        if arguments or names:
            raise TypeError("State() takes no arguments")
        self._deadline = -1

    def __dealloc__(self):
        PyMem_Free(self.table)
        PyMem_Free(self.arena)

    # The round.

    @property
    def round(self):
        """The number of the round that forms or is complete, from 0."""
        return self._round

    @round.setter
    def round(self, value):
        self._round = integer(value, "round", MAX_TIME)

    @property
    def started(self):
        """When the rendezvous began: when its state was first written; 0 before that."""
        return self._started

    @started.setter
    def started(self, value):
        self._started = integer(value, "started", MAX_TIME)

    @property
    def deadline(self):
        """When the last call ends, or None while there is none."""
        return None if self._deadline < 0 else self._deadline

    @deadline.setter
    def deadline(self, value):
        self._deadline = -1 if value is None else integer(value, "deadline", MAX_TIME)

    @property
    def closed(self):
        """Whether the rendezvous is closed."""
        return self._closed

    @closed.setter
    def closed(self, value):
        self._closed = bool(value)

    @property
    def complete(self):
        """Whether the round is complete."""
        return self._complete

    @property
    def world_size(self):
        """The number of participants at the moment the round became complete; 0 while it forms."""
        return self._world_size

    def complete_round(self):
        """Give ranks 0..n-1 in natural order of address to the participants, and forget who was missing."""
        cdef Py_ssize_t at, kept = 0
        cdef uint32_t rank = 0
        cdef Node* node
        if self._complete:
            raise ValueError(f"round {self._round} is complete already")
        for at in range(self.size):
            node = &self.table[at]
            if node.role == MISSING:
                continue
            node.member = node.role == PARTICIPANT
            if node.member:
                node.rank = rank
                rank += 1
            if kept != at:
                self.table[kept] = node[0]
            kept += 1
        self.size = kept
        self.counts[<int> MISSING] = 0
        self._complete = True
        self._deadline = -1
        self._world_size = rank

    def open_round(self):
        """Begin the next round: one more, not complete, no deadline."""
        self._round = integer(self._round + 1, "round", MAX_TIME)
        self._complete = False
        self._deadline = -1
        self._world_size = 0

    # The nodes.

    def __len__(self):
        return self.size

    def count(self, role):
        """Return how many nodes have ``role``."""
        return self.counts[role_of(role)]

    def nodes(self, role):
        """Return the nodes that have ``role``, in natural order of address."""
        cdef int64_t wanted = role_of(role)
        cdef Py_ssize_t at = 0
        cdef list found = []
        # name() may start a garbage collection, which may run anything, a change of this table too: the size is
        # looked up on each turn.
        while at < self.size:
            if self.table[at].role == wanted:
                found.append(self.name(at))
            at += 1
        return found

    def role(self, node):
        """Return the role of ``node``, or None where the table has no such node."""
        cdef Py_ssize_t at = self.find(Place(node))
        return None if at < 0 else self.table[at].role

    def rank(self, node):
        """Return the rank of ``node``, or None unless it is a participant of a complete round."""
        cdef Py_ssize_t at = self.find(Place(node))
        if at < 0 or not self._complete or self.table[at].role != PARTICIPANT:
            return None
        return self.table[at].rank

    def node_of_rank(self, rank):
        """Return the participant of a complete round that has ``rank``, or None."""
        cdef int64_t wanted = integer(rank, "rank", MAX_ID)
        cdef Py_ssize_t at
        if self._complete:
            for at in range(self.size):
                if self.table[at].role == PARTICIPANT and self.table[at].rank == wanted:
                    return self.name(at)
        return None

    def heartbeat(self, node):
        """Return when ``node`` was last heard of, or None where the table has no such node."""
        cdef Py_ssize_t at = self.find(Place(node))
        return None if at < 0 else self.table[at].heartbeat

    def oldest_heartbeat(self):
        """Return the oldest heartbeat of the nodes that are not missing, or None where there is none."""
        cdef Py_ssize_t at
        cdef int64_t oldest = MAX_TIME + 1
        for at in range(self.size):
            if self.table[at].role != MISSING and self.table[at].heartbeat < oldest:
                oldest = self.table[at].heartbeat
        return None if oldest > MAX_TIME else oldest

    def join(self, node, now):
        """Make ``node`` a participant of the round that forms, heard of at ``now``."""
        if self._complete:
            raise ValueError(f"no node can join round {self._round}: it is complete")
        self.put(node, PARTICIPANT, now)

    def wait(self, node, now):
        """Put ``node`` on the wait list, heard of at ``now``."""
        self.put(node, WAITING, now)

    def stand_by(self, node, now):
        """Put ``node`` on the redundancy list, heard of at ``now``."""
        self.put(node, REDUNDANT, now)

    def touch(self, node, now):
        """Record that ``node`` was heard of at ``now``; False where it is absent or missing."""
        cdef int64_t time = integer(now, "now", MAX_TIME)
        cdef Py_ssize_t at = self.find(Place(node))
        if at < 0 or self.table[at].role == MISSING:
            return False
        self.table[at].heartbeat = time
        return True

    def leave(self, node):
        """Take ``node`` out: a member of the last complete round is then missing. False where it is not in."""
        cdef Py_ssize_t at = self.find(Place(node))
        if at < 0 or self.table[at].role == MISSING:
            return False
        if self.table[at].member:
            self.mark_missing(at)
        else:
            self.remove(at)
        return True

    def expire(self, before):
        """Take out, and return, all nodes that are not missing and were last heard of before ``before``."""
        cdef int64_t limit = integer(before, "before", MAX_TIME)
        cdef Py_ssize_t at = 0, kept = 0
        cdef list late = []
        while at < self.size:  # on each turn, as in nodes()
            if self.table[at].role != MISSING and self.table[at].heartbeat < limit:
                late.append(self.name(at))
            at += 1
        if not late:
            return late
        for at in range(self.size):
            if self.table[at].role != MISSING and self.table[at].heartbeat < limit:
                if not self.table[at].member:
                    self.counts[self.table[at].role] -= 1
                    continue
                self.mark_missing(at)
            if kept != at:
                self.table[kept] = self.table[at]
            kept += 1
        self.size = kept
        return late

    cdef name(self, Py_ssize_t at):
        cdef Node* node = &self.table[at]
        addr = PyUnicode_DecodeUTF8(<const char*> self.arena + node.addr, node.length, NULL)
        return (addr, node.pid, node.local_id)

    cdef void mark_missing(self, Py_ssize_t at) noexcept:
        self.counts[self.table[at].role] -= 1
        self.counts[<int> MISSING] += 1
        self.table[at].role = MISSING
        self.table[at].rank = 0

    cdef void remove(self, Py_ssize_t at) noexcept:
        self.counts[self.table[at].role] -= 1
        self.size -= 1
        memmove(&self.table[at], &self.table[at + 1], (self.size - at) * sizeof(Node))

    cdef int order(self, Place place, Py_ssize_t at) noexcept:
        cdef Node* node = &self.table[at]
        return compare_places(place.addr, place.length, place.pid, place.local_id,
                              self.arena + node.addr, node.length, node.pid, node.local_id, 0)

    cdef Py_ssize_t bisect(self, Place place) noexcept:
        """Return where ``place`` stands or would stand."""
        cdef Py_ssize_t low = 0, high = self.size, middle
        while low < high:
            middle = (low + high) // 2
            if self.order(place, middle) > 0:
                low = middle + 1
            else:
                high = middle
        return low

    cdef Py_ssize_t find(self, Place place) noexcept:
        cdef Py_ssize_t at = self.bisect(place)
        return at if at < self.size and self.order(place, at) == 0 else -1

    cdef int put(self, object node, uint8_t role, object now) except -1:
        cdef Place place = Place(node)
        cdef int64_t time = integer(now, "now", MAX_TIME)
        cdef Py_ssize_t at = self.bisect(place), lost
        cdef bint member = False
        cdef Node fresh
        if at == self.size or self.order(place, at) != 0:
            if self.size >= MAX_NODES:
                raise ValueError(f"a state holds at most {MAX_NODES} nodes")
            self.reserve(self.size + 1, place.length)
            # A process that starts again on the same host comes back for the one that is missed there.
            if self.counts[<int> MISSING] > 0:
                lost = self.missing_at(place, at)
                if lost >= 0:
                    member = True
                    self.remove(lost)
                    if lost < at:
                        at -= 1
            memcpy(self.arena + self.arena_size, place.addr, place.length)
            memmove(&self.table[at + 1], &self.table[at], (self.size - at) * sizeof(Node))
            memset(&fresh, 0, sizeof(Node))
            fresh.addr = <uint32_t> self.arena_size
            fresh.length = <uint8_t> place.length
            fresh.pid = <uint32_t> place.pid
            fresh.local_id = <uint32_t> place.local_id
            fresh.member = member
            self.table[at] = fresh
            self.arena_size += place.length
            self.size += 1
        else:
            self.counts[self.table[at].role] -= 1
        self.table[at].role = role
        self.table[at].rank = 0
        self.table[at].heartbeat = time
        self.counts[role] += 1
        return 0

    cdef bint same_address(self, Place place, Py_ssize_t at) noexcept:
        cdef Node* node = &self.table[at]
        return node.length == place.length and memcmp(self.arena + node.addr, place.addr, place.length) == 0

    cdef Py_ssize_t missing_at(self, Place place, Py_ssize_t at) noexcept:
        """Return the first missing node with the address of ``place``, which would stand at ``at``, or -1."""
        while at > 0 and self.same_address(place, at - 1):
            at -= 1
        while at < self.size and self.same_address(place, at):
            if self.table[at].role == MISSING:
                return at
            at += 1
        return -1

    cdef int reserve(self, Py_ssize_t nodes, Py_ssize_t addr_bytes) except -1:
        """Make room for ``nodes`` nodes in all and ``addr_bytes`` more bytes of addresses."""
        cdef void* memory
        cdef Py_ssize_t wanted
        if nodes > self.capacity:
            wanted = max(nodes, 2 * self.capacity)
            memory = PyMem_Realloc(self.table, wanted * sizeof(Node))
            if memory == NULL:
                raise MemoryError
            self.table = <Node*> memory
            self.capacity = wanted
        if self.arena_size + addr_bytes > self.arena_capacity:
            self.compact(addr_bytes)
        return 0

    cdef int compact(self, Py_ssize_t addr_bytes) except -1:
        """Move the addresses in use to a new arena with room for as many again and ``addr_bytes`` more."""
        cdef Py_ssize_t at, used = 0
        cdef uint8_t* memory
        for at in range(self.size):
            used += self.table[at].length
        if 2 * used + addr_bytes > MAX_ID:
            raise MemoryError("the addresses of the nodes take more than 4 GiB")
        memory = <uint8_t*> PyMem_Malloc(2 * used + addr_bytes)
        if memory == NULL:
            raise MemoryError
        self.arena_capacity = 2 * used + addr_bytes
        used = 0
        for at in range(self.size):
            memcpy(memory + used, self.arena + self.table[at].addr, self.table[at].length)
            self.table[at].addr = <uint32_t> used
            used += self.table[at].length
        PyMem_Free(self.arena)
        self.arena = memory
        self.arena_size = used
        return 0

    # The bytes.

    def encode(self):
        """Return the bytes of the state: the same state always gives the same bytes."""
        cdef Py_ssize_t at, addr_bytes = 0
        cdef int64_t latest = 0
        cdef uint8_t* buffer
        cdef uint8_t* end
        for at in range(self.size):
            addr_bytes += self.table[at].length
            latest = max(latest, self.table[at].heartbeat)
        buffer = <uint8_t*> PyMem_Malloc(MAX_PREAMBLE + self.size * MAX_NODE + addr_bytes)
        if buffer == NULL:
            raise MemoryError
        try:
            end = self.write(buffer, latest)
            return sealed(buffer, end - buffer)
        finally:
            PyMem_Free(buffer)

    cdef uint8_t* write(self, uint8_t* out, int64_t latest) noexcept:
        cdef Py_ssize_t at, length, most, before_length = 0, front = 0, back = 0, before_back = 0
        cdef const uint8_t* addr
        cdef const uint8_t* before = self.arena
        cdef uint32_t next_rank = 0
        cdef bint ranked, explicit
        cdef Node* node
        memset(out, 0, HEADER)
        out[0] = 0x52
        out[1] = 0x5A
        out[2] = VERSION
        out[3] = self._complete * COMPLETE | self._closed * CLOSED | (self._deadline >= 0) * DEADLINE
        out = write_varint(out + HEADER, self._round)
        out = write_varint(out, self._started)
        if self._deadline >= 0:
            out = write_varint(out, self._deadline)
        if self._complete:
            out = write_varint(out, self._world_size)
        out = write_varint(out, latest)
        out = write_varint(out, self.size)
        for at in range(self.size):
            node = &self.table[at]
            addr = self.arena + node.addr
            length = node.length
            ranked = self._complete and node.role == PARTICIPANT
            explicit = ranked and node.rank != next_rank
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

    @classmethod
    def decode(cls, data):
        """Return the state that ``data`` holds.

        Raises:
            RendezvousStateError: ``data`` is not a state that this version understands; the message says why.
        """
        if type(data) is not bytes:
            raise RendezvousStateError(f"the state must be bytes, not {type(data).__name__}")
        cdef State state = cls()
        cdef Reader reader = Reader(data)
        reader.read(state)
        return state


cdef inline Py_ssize_t shared_front(const uint8_t* a, const uint8_t* b, Py_ssize_t guess, Py_ssize_t most) noexcept:
    """Return how many bytes, at most ``most``, are the same at the front; quick if ``guess`` is a little less."""
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


cdef inline uint8_t* write_varint(uint8_t* out, uint64_t value) noexcept:
    while value > 0x7F:
        out[0] = <uint8_t> (value & 0x7F | 0x80)
        out += 1
        value >>= 7
    out[0] = <uint8_t> value
    return out + 1


cdef bytes sealed(const uint8_t* buffer, Py_ssize_t size):
    """Return ``buffer`` as bytes, with its length and its checksum filled in."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size + CHECKSUM)
    cdef uint8_t* raw = <uint8_t*> PyBytes_AS_STRING(out)
    memcpy(raw, buffer, size)
    write_u32(raw + 4, size + CHECKSUM)
    # Nobody else has seen these bytes yet: filling them in is safe.
    write_u32(raw + size, crc32(memoryview(out)[:size]))
    return out


cdef inline void write_u32(uint8_t* out, uint32_t value) noexcept:
    out[0] = <uint8_t> (value & 0xFF)
    out[1] = <uint8_t> (value >> 8 & 0xFF)
    out[2] = <uint8_t> (value >> 16 & 0xFF)
    out[3] = <uint8_t> (value >> 24)


cdef inline uint32_t read_u32(const uint8_t* raw) noexcept:
    return raw[0] | raw[1] << 8 | raw[2] << 16 | <uint32_t> raw[3] << 24


@cython.final
cdef class Reader:
    """Reads a state's bytes, once, front to back. It owns the bytes; nothing is read past ``end``."""

    cdef bytes data
    cdef const uint8_t* raw
    cdef Py_ssize_t at
    cdef Py_ssize_t end
    cdef Py_ssize_t back
    cdef int64_t next_rank
    cdef uint8_t* ranks

    def __cinit__(self, bytes data not None):
        self.data = data
        self.raw = <const uint8_t*> PyBytes_AS_STRING(data)
        self.at = HEADER

    def __dealloc__(self):
        PyMem_Free(self.ranks)

    cdef int read(self, State state) except -1:
        cdef int flags = self.header()
        cdef int64_t latest, count, _
        state._round = self.varint(MAX_TIME, "round")
        state._started = self.varint(MAX_TIME, "start")
        if flags & DEADLINE:
            state._deadline = self.varint(MAX_TIME, "deadline")
        state._closed = flags & CLOSED != 0
        state._complete = flags & COMPLETE != 0
        if state._complete:
            state._world_size = self.varint(MAX_ID, "world size")
        latest = self.varint(MAX_TIME, "latest heartbeat")
        count = self.varint(MAX_TIME, "number of nodes")
        if count > MAX_NODES:
            raise RendezvousStateError(f"the state claims {count} nodes, more than {MAX_NODES}")
        if count > (self.end - self.at) // MIN_NODE:
            raise RendezvousStateError(
                f"the state claims {count} nodes in {self.end - self.at} bytes: it is malformed"
            )
        if state._world_size > count:
            raise RendezvousStateError(
                f"the state has a world of {state._world_size}, but knows {count} nodes: it is malformed"
            )
        # The counts are checked against the bytes that are there: what is taken here is bounded by them.
        state.reserve(count, 0)
        self.ranks = <uint8_t*> PyMem_Malloc(state._world_size + 1)
        if self.ranks == NULL:
            raise MemoryError
        memset(self.ranks, 0, state._world_size + 1)
        for _ in range(count):
            self.node(state, latest)
        if self.at != self.end:
            raise RendezvousStateError(
                f"the state has {self.end - self.at} bytes after its last node: it is malformed"
            )
        return 0

    cdef int header(self) except -1:
        cdef const uint8_t* raw = self.raw
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.data)
        cdef int64_t length
        if size > 0 and raw[0] == 0x80:
            raise RendezvousStateError(
                "the state is a pickle: a node with torch's own rendezvous shares the key; give all nodes of a "
                "job the same backend, or this job another run id"
            )
        if (size > 0 and raw[0] != 0x52) or (size > 1 and raw[1] != 0x5A):
            raise RendezvousStateError(
                f"the state was not written by etcd-rendezvous: it starts with {self.data[:4].hex(' ')}"
            )
        if size < HEADER:
            raise RendezvousStateError(f"the state is truncated: {size} bytes are less than its header")
        if raw[2] != VERSION:
            raise RendezvousStateError(
                f"the state has format version {raw[2]}, this etcd-rendezvous reads version {VERSION}: "
                f"give all nodes of a job the same release"
            )
        length = read_u32(raw + 4)
        if size < length:
            raise RendezvousStateError(f"the state is truncated: {size} of {length} bytes are there")
        if size > length or length < HEADER + CHECKSUM:
            raise RendezvousStateError(f"the state gives its length as {length} bytes, but has {size}")
        self.end = length - CHECKSUM
        if <uint32_t> crc32(memoryview(self.data)[:self.end]) != read_u32(raw + self.end):
            raise RendezvousStateError("the state fails its checksum: it was damaged in etcd or on the way")
        if raw[3] & ~(COMPLETE | CLOSED | DEADLINE):
            raise RendezvousStateError(f"the state has unknown flags {raw[3]:#04x}")
        return raw[3]

    cdef int byte(self, str name) except -1:
        if self.at >= self.end:
            raise RendezvousStateError(f"the state ends within its {name}: it is malformed")
        self.at += 1
        return self.raw[self.at - 1]

    cdef int64_t varint(self, int64_t largest, str name) except -1:
        cdef uint64_t value = 0
        cdef int shift = 0, byte
        # Nearly all are of one byte, and none exceeds what any field may hold.
        if self.at < self.end and self.raw[self.at] < 0x80:
            self.at += 1
            return self.raw[self.at - 1]
        while True:
            byte = self.byte(name)
            value |= <uint64_t> (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 56:
                raise RendezvousStateError(f"the state has an overlong {name}")
        if value > <uint64_t> largest:
            raise RendezvousStateError(f"the state has a {name} of {value}, more than {largest}")
        return <int64_t> value

    cdef int node(self, State state, int64_t latest) except -1:
        cdef int tag = self.byte("node")
        cdef Node* node
        cdef Node* before
        cdef Py_ssize_t front
        cdef int64_t age
        cdef int order
        if tag & ~(3 | MEMBER | LOCAL_ID | RANK | BACK):
            raise RendezvousStateError(f"the state has a node with unknown tag {tag:#04x}")
        front = self.address(state, tag & BACK != 0)
        # address() has made room for one node more.
        node = &state.table[state.size]
        node.role = tag & 3
        node.member = tag & MEMBER != 0
        node.pid = <uint32_t> self.varint(MAX_ID, "pid")
        node.local_id = <uint32_t> self.varint(MAX_ID, "local id") if tag & LOCAL_ID else 0
        age = self.varint(MAX_TIME, "heartbeat")
        if age > latest:
            raise RendezvousStateError("the state has a heartbeat before the epoch")
        node.heartbeat = latest - age
        node.rank = <uint32_t> self.rank(state, tag & RANK != 0, node.role)
        if state.size > 0:
            before = &state.table[state.size - 1]
            order = compare_places(state.arena + before.addr, before.length, before.pid, before.local_id,
                                   state.arena + node.addr, node.length, node.pid, node.local_id, front)
            if order >= 0:
                addr, pid, local_id = state.name(state.size)
                name = f"{addr}_{pid}_{local_id}"
                raise RendezvousStateError(
                    f"the state has the node {name!r} {'twice' if order == 0 else 'out of order'}"
                )
        state.counts[node.role] += 1
        state.size += 1
        return 0

    cdef Py_ssize_t address(self, State state, bint explicit) except -1:
        """Read the address of the next node into the arena; return how many bytes it shares at the front."""
        cdef Py_ssize_t front = self.varint(MAX_ADDR, "address")
        cdef Py_ssize_t back = self.varint(MAX_ADDR, "address") if explicit else self.back
        cdef Py_ssize_t middle = self.varint(MAX_ADDR, "address")
        cdef Py_ssize_t length = front + back + middle, before_length = 0, at
        cdef Node* before = NULL
        cdef Node* node
        cdef uint8_t* addr
        cdef uint8_t bits = 0
        if state.size > 0:
            before_length = state.table[state.size - 1].length
        if front + back > before_length or not 1 <= length <= MAX_ADDR:
            raise RendezvousStateError("the state has an address of impossible length")
        if middle > self.end - self.at:
            raise RendezvousStateError("the state ends within its address: it is malformed")
        state.reserve(state.size + 1, length)
        addr = state.arena + state.arena_size
        if state.size > 0:
            before = &state.table[state.size - 1]
            memcpy(addr, state.arena + before.addr, front)
            memcpy(addr + front + middle, state.arena + before.addr + before_length - back, back)
        memcpy(addr + front, self.raw + self.at, middle)
        self.at += middle
        self.back = back
        for at in range(length):
            bits |= addr[at]
        if bits >= 0x80:
            try:
                PyUnicode_DecodeUTF8(<const char*> addr, length, NULL)
            except UnicodeDecodeError:
                raise RendezvousStateError("the state has an address that is not UTF-8") from None
        node = &state.table[state.size]
        node.addr = <uint32_t> state.arena_size
        node.length = <uint8_t> length
        state.arena_size += length
        return front

    cdef int64_t rank(self, State state, bint explicit, int role) except -1:
        cdef int64_t rank
        if not state._complete or role != PARTICIPANT:
            if explicit:
                raise RendezvousStateError("the state has a rank for a node that takes no part")
            return 0
        rank = self.varint(MAX_ID, "rank") if explicit else self.next_rank
        if rank >= state._world_size:
            raise RendezvousStateError(f"the state has rank {rank} in a world of {state._world_size}")
        if self.ranks[rank]:
            raise RendezvousStateError(f"the state has rank {rank} twice")
        self.ranks[rank] = 1
        self.next_rank = rank + 1
        return rank
