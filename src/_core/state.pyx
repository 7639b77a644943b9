# cython: language_level=3, auto_pickle=False
"""The state of a rendezvous: its round, a table of nodes, and its bytes.

``_state_py.py`` is the pure twin and describes what a state is. This module is the Python side: it checks arguments,
and makes a Python object only of what a caller asks for. The table of nodes is in ``nodes.pxd``, its bytes are in
``state_encoder.pxd`` and ``state_decoder.pxd``.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t

from nodes cimport (MAX_ADDR, MAX_ID, MAX_TIME, MISSING, PARTICIPANT, REDUNDANT, WAITING, Key, Table, expire, find,
                    give_ranks, key_of, mark_missing, put, release, remove)
from state_decoder cimport decode
from state_encoder cimport encode, encoded_size
from state_format cimport Round
from wire cimport integer, with_checksum

from zlib import crc32

__all__ = ["State"]


cdef int64_t role_of(object role) except -1:
    return integer(int(role) if isinstance(role, int) else role, "role", 0, MISSING)


@cython.final
cdef class Name:
    """A node that a caller named, checked. It owns the address that its key points to."""

    cdef bytes raw
    cdef Key key

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
        self.key.length = PyBytes_GET_SIZE(self.raw)
        if not 1 <= self.key.length <= MAX_ADDR:
            raise ValueError(f"a node's address must take from 1 to {MAX_ADDR} bytes, not {self.key.length}")
        self.key.addr = <const uint8_t*> PyBytes_AS_STRING(self.raw)
        self.key.pid = <uint32_t> integer(pid, "a node's pid", 0, MAX_ID)
        self.key.local_id = <uint32_t> integer(local_id, "a node's local id", 0, MAX_ID)


@cython.final
cdef class State:
    """The state of one rendezvous. Times are milliseconds since the epoch; a node is (address, pid, local id)."""

    cdef Round current
    cdef Table table

    def __cinit__(self, *arguments, **names):
        if arguments or names:
            raise TypeError("State() takes no arguments")
        self.current.deadline = -1

    def __dealloc__(self):
        release(&self.table)

    # The round.

    @property
    def round(self):
        """The number of the round that forms or is complete, from 0."""
        return self.current.number

    @round.setter
    def round(self, value):
        self.current.number = integer(value, "round", 0, MAX_TIME)

    @property
    def started(self):
        """The time at which the state was first written; 0 before that."""
        return self.current.started

    @started.setter
    def started(self, value):
        self.current.started = integer(value, "started", 0, MAX_TIME)

    @property
    def deadline(self):
        """When the last call ends, or None if there is no last call."""
        return None if self.current.deadline < 0 else self.current.deadline

    @deadline.setter
    def deadline(self, value):
        self.current.deadline = -1 if value is None else integer(value, "deadline", 0, MAX_TIME)

    @property
    def closed(self):
        """Whether the rendezvous is closed."""
        return self.current.closed

    @closed.setter
    def closed(self, value):
        self.current.closed = bool(value)

    @property
    def complete(self):
        """Whether the round is complete."""
        return self.current.complete

    @property
    def world_size(self):
        """The number of participants when the round became complete; 0 while it forms."""
        return self.current.world_size

    def complete_round(self):
        """Complete the round: rank the participants from 0 in natural order of address, and remove missing nodes."""
        if self.current.complete:
            raise ValueError(f"round {self.current.number} is complete already")
        self.current.world_size = give_ranks(&self.table)
        self.current.complete = True
        self.current.deadline = -1

    def open_round(self):
        """Begin the next round: its number is one more, it is not complete, and it has no deadline."""
        self.current.number = integer(self.current.number + 1, "round", 0, MAX_TIME)
        self.current.complete = False
        self.current.deadline = -1
        self.current.world_size = 0

    # The nodes.

    def __len__(self):
        return self.table.size

    def count(self, role):
        """Return how many nodes have ``role``."""
        return self.table.counts[role_of(role)]

    def nodes(self, role):
        """Return the nodes that have ``role``, in natural order of address."""
        cdef int64_t wanted = role_of(role)
        cdef Py_ssize_t at = 0
        cdef list found = []
        # name() may start a garbage collection, which may run any code, and that may change this table: so the size is
        # read again on each turn.
        while at < self.table.size:
            if self.table.nodes[at].role == wanted:
                found.append(self.name(at))
            at += 1
        return found

    def role(self, node):
        """Return the role of ``node``, or None if it is not in the table."""
        cdef Py_ssize_t at = self.position(node)
        return None if at < 0 else self.table.nodes[at].role

    def rank(self, node):
        """Return the rank of ``node``, or None if it is not a participant of a complete round."""
        cdef Py_ssize_t at = self.position(node)
        if at < 0 or not self.current.complete or self.table.nodes[at].role != PARTICIPANT:
            return None
        return self.table.nodes[at].rank

    def node_of_rank(self, rank):
        """Return the node that has ``rank`` in the complete round, or None if there is none."""
        cdef int64_t wanted = integer(rank, "rank", 0, MAX_ID)
        cdef Py_ssize_t at
        if self.current.complete:
            for at in range(self.table.size):
                if self.table.nodes[at].role == PARTICIPANT and self.table.nodes[at].rank == wanted:
                    return self.name(at)
        return None

    def heartbeat(self, node):
        """Return the time of the last heartbeat of ``node``, or None if it is not in the table."""
        cdef Py_ssize_t at = self.position(node)
        return None if at < 0 else self.table.nodes[at].heartbeat

    def oldest_heartbeat(self):
        """Return the oldest heartbeat of the nodes that are not missing, or None if there are no such nodes."""
        cdef Py_ssize_t at
        cdef int64_t oldest = MAX_TIME + 1
        for at in range(self.table.size):
            if self.table.nodes[at].role != MISSING and self.table.nodes[at].heartbeat < oldest:
                oldest = self.table.nodes[at].heartbeat
        return None if oldest > MAX_TIME else oldest

    def join(self, node, now):
        """Make ``node`` a participant of the round that forms; ``now`` is its heartbeat."""
        if self.current.complete:
            raise ValueError(f"no node can join round {self.current.number}: it is complete")
        self.set_role(node, PARTICIPANT, now)

    def wait(self, node, now):
        """Put ``node`` on the wait list; ``now`` is its heartbeat."""
        self.set_role(node, WAITING, now)

    def stand_by(self, node, now):
        """Put ``node`` on the redundancy list; ``now`` is its heartbeat."""
        self.set_role(node, REDUNDANT, now)

    def touch(self, node, now):
        """Set the heartbeat of ``node`` to ``now``; return False if it is not in the table, or missing."""
        cdef int64_t time = integer(now, "now", 0, MAX_TIME)
        cdef Py_ssize_t at = self.position(node)
        if at < 0 or self.table.nodes[at].role == MISSING:
            return False
        self.table.nodes[at].heartbeat = time
        return True

    def leave(self, node):
        """Remove ``node``; if it is a member of the last complete round, it becomes missing.

        Returns False if it is not in the table, or missing already.
        """
        cdef Py_ssize_t at = self.position(node)
        if at < 0 or self.table.nodes[at].role == MISSING:
            return False
        if self.table.nodes[at].member:
            mark_missing(&self.table, at)
        else:
            remove(&self.table, at)
        return True

    def expire(self, before):
        """Remove each node whose heartbeat is older than ``before``, as ``leave`` does, and return these nodes."""
        cdef int64_t limit = integer(before, "before", 0, MAX_TIME)
        cdef Py_ssize_t at = 0
        cdef list late = []
        while at < self.table.size:  # read again on each turn, as in nodes()
            if self.table.nodes[at].role != MISSING and self.table.nodes[at].heartbeat < limit:
                late.append(self.name(at))
            at += 1
        if late:
            expire(&self.table, limit)
        return late

    cdef name(self, Py_ssize_t at):
        """Return the node at ``at``, which exists, as a tuple."""
        # A copy, and the address is read first: creating the tuple may run other code, as in nodes().
        cdef Key key = key_of(&self.table, &self.table.nodes[at])
        addr = PyUnicode_DecodeUTF8(<const char*> key.addr, key.length, NULL)
        return (addr, key.pid, key.local_id)

    cdef Py_ssize_t position(self, object node) except -2:
        """Return the position of ``node``, or -1 if it is not in the table."""
        cdef Name name = Name(node)
        return find(&self.table, &name.key)

    cdef int set_role(self, object node, uint8_t role, object now) except -1:
        cdef Name name = Name(node)
        put(&self.table, &name.key, role, integer(now, "now", 0, MAX_TIME))
        return 0

    # The bytes.

    def encode(self):
        """Return the bytes of the state: the same state always gives the same bytes."""
        cdef uint8_t* buffer = <uint8_t*> PyMem_Malloc(encoded_size(&self.table))
        cdef uint8_t* end
        if buffer == NULL:
            raise MemoryError
        try:
            # No Python code has run since the size was computed, so the table is the same.
            end = encode(buffer, &self.current, &self.table)
            return with_checksum(buffer, end - buffer, crc32)
        finally:
            PyMem_Free(buffer)

    @classmethod
    def decode(cls, data):
        """Return the state that was encoded as ``data``.

        Raises:
            RendezvousStateError: ``data`` is not a state that this version can read; the message says why.
        """
        cdef State state = cls()
        decode(data, &state.current, &state.table, crc32)
        return state
