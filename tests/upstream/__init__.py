"""A Conda upstream for the tests: real packages, indexed by a tool of the field, and a server that can fail.

    channel  builds packages, indexes channels, lays out a whole upstream
    pages    installer pages of each kind that upstreams show
    server   an HTTP server with ranges, validators and faults on demand

`python -m tests.upstream.channel DIR` lays an upstream out in DIR.
"""
