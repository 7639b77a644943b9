"""Fuzzing: bytes that nobody of this project wrote, and what is done with them afterwards.

``targets`` lists the targets. Each is a function of bytes that raises AssertionError, or any other exception that is
not documented, if it finds a fault. ``python -m tests.fuzz`` runs them with atheris (libFuzzer), which is guided by the
coverage of the pure twins and of the protocol; ``make fuzz`` does so with the core built with AddressSanitizer and
UndefinedBehaviorSanitizer. ``inputs`` has those that are worth keeping, which ``test_fuzz`` runs without atheris.
"""
