"""What this project measures: ``rendezvous bench``, or ``make bench`` in a clone."""
