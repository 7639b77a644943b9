"""Histories of the round's store under faults, checked for linearizability by porcupine.

    workload   what the clients do: random operations from a seed
    worker     a process with several clients, which records what they do
    faults     what happens to the network and to the members of etcd meanwhile
    run        one history after the other on a cluster
    audit      checks of a history that need no model
    checker    runs porcupine, which tools/porcupine builds

``python -m tests.histories`` runs them; ``--help`` lists the options.
"""
