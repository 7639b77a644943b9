# cython: language_level=3
"""Checked integers, varints and checksums: what ``state.pyx`` and ``roster.pyx`` share.

Every function is ``cdef inline``: each extension compiles its own copy, and nothing is imported at run time.
``_wire_py.py`` is the pure twin.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    # Bytes. A varint has seven bits in each byte, so nine bytes hold every int64_t that is not negative.
    MAX_VARINT = 9
    CHECKSUM = 4

cdef struct Input:
    # Bytes that are read once, front to back. raw[0] to raw[end - 1] are readable, and 0 <= at <= end.
    const uint8_t* raw
    Py_ssize_t at
    Py_ssize_t end


cdef inline int64_t integer(object value, str name, int64_t least, int64_t largest) except -1:
    """Return ``value``, an int from ``least`` (0 or more) to ``largest``; else raise TypeError or ValueError."""
    cdef int overflow = 0
    cdef int64_t number
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow != 0 or not least <= number <= largest:
        raise ValueError(f"{name} must be from {least} to {largest}, not {value}")
    return number


cdef inline uint8_t* write_varint(uint8_t* out, int64_t value) noexcept:
    """Write ``value``, which is not negative, to ``out``, where MAX_VARINT bytes are free; return its end."""
    while value > 0x7F:
        out[0] = <uint8_t> (value & 0x7F | 0x80)
        out += 1
        value >>= 7
    out[0] = <uint8_t> value
    return out + 1


cdef inline int64_t read_varint(Input* data, int64_t largest, str whole, str name) except -1:
    """Return the next varint, at most ``largest``. ``whole`` and ``name`` ("state", "pid") are for errors."""
    cdef uint64_t value = 0
    cdef int shift
    cdef uint8_t byte
    # shift is at most 56, so at most 63 bits are set, and the value fits an int64_t.
    for shift in range(0, 7 * MAX_VARINT, 7):
        if data.at >= data.end:
            refuse(f"the {whole} ends within its {name}: it is malformed")
        byte = data.raw[data.at]
        data.at += 1
        value |= <uint64_t> (byte & 0x7F) << shift
        if byte < 0x80:
            if value > <uint64_t> largest:
                refuse(f"the {whole} has a {name} of {value}, more than {largest}")
            return <int64_t> value
    return refuse(f"the {whole} has an overlong {name}")


cdef inline int refuse(str message) except -1:
    """Raise the error for bytes that cannot be read."""
    # A .pxd cannot import a Python name for all of its functions, but a function can.
    from rendezvous.api import RendezvousStateError
    raise RendezvousStateError(message)


cdef inline void write_u32(uint8_t* out, uint32_t value) noexcept:
    """Write ``value`` to the four bytes at ``out``, the lowest byte first."""
    out[0] = <uint8_t> (value & 0xFF)
    out[1] = <uint8_t> (value >> 8 & 0xFF)
    out[2] = <uint8_t> (value >> 16 & 0xFF)
    out[3] = <uint8_t> (value >> 24)


cdef inline uint32_t read_u32(const uint8_t* raw) noexcept:
    """Return the value of the four bytes at ``raw``."""
    return raw[0] | <uint32_t> raw[1] << 8 | <uint32_t> raw[2] << 16 | <uint32_t> raw[3] << 24


# Their caller passes zlib.crc32: a .pxd cannot import it once, and to import it on each call takes longer than to
# compute the checksum of a small state.

cdef inline bytes with_checksum(const uint8_t* body, Py_ssize_t size, object crc32):
    """Return the ``size`` bytes of ``body`` and their checksum."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size + CHECKSUM)
    cdef uint8_t* raw = <uint8_t*> PyBytes_AS_STRING(out)
    # No other code has a reference to these bytes yet, so they may still be written.
    memcpy(raw, body, size)
    write_u32(raw + size, crc32(memoryview(out)[:size]))
    return out


cdef inline bint checksum_holds(bytes data, object crc32) except -1:
    """Whether the last CHECKSUM bytes of ``data``, which has at least as many, are the checksum of the rest."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data) - CHECKSUM
    cdef uint32_t expected = crc32(memoryview(data)[:size])
    return expected == read_u32(<const uint8_t*> PyBytes_AS_STRING(data) + size)
