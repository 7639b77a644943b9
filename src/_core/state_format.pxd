# cython: language_level=3
"""Constants of the bytes of a state, and what it holds besides its nodes. ``_state_bytes_py.py`` has the format."""

from libc.stdint cimport int64_t

cdef enum:
    VERSION = 1
    # Flags of the state.
    COMPLETE = 1
    CLOSED = 2
    DEADLINE = 4
    # Flags of a node, in one byte with its role.
    ROLE = 3
    MEMBER = 4
    LOCAL_ID = 8
    RANK = 16
    BACK = 32

cdef enum:
    # Bytes.
    HEADER = 8
    MIN_NODE = 5
    # The most that encode() writes before the nodes: the header and six varints of at most nine bytes.
    MAX_PREAMBLE = 64
    # The most that it writes for a node, without its address: the tag (1), three lengths of at most MAX_ADDR (2 each),
    # pid and local id (5 each), the age of its heartbeat (8: below 2**53), and a rank below MAX_NODES (3).
    MAX_NODE = 32

cdef struct Round:
    # Times are milliseconds since the epoch.
    int64_t number
    int64_t started
    int64_t deadline  # -1 means none
    int64_t world_size
    bint complete
    bint closed
