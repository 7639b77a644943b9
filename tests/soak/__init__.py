"""A soak: many handlers, behind proxies that cut and stall, form round after round; nothing may be lost or grow.

    host       a process with many handlers, each in a thread
    worlds     what is wrong in the reports of the handlers
    figures    what must not grow: how it is measured and compared
    run        etcd, the proxies, the hosts, and the rounds

``python -m tests.soak`` runs it; ``--help`` lists the options.
"""
