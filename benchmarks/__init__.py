"""The benchmarks of one machine: ``python -m benchmarks``, or ``make bench``, in a clone."""
