"""The benchmark on a cluster, ``rendezvous bench``: how fast nodes on many hosts form a world on an existing etcd.

The benchmarks of one machine are in the folder ``benchmarks`` of the repository. They are not installed.
"""
