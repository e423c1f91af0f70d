"""A mirror of Conda channels whose served indexes never name a file that is not there.

Data goes one way through these modules:

    config     what is wanted: the YAML file, the environment, the command line
    upstream   what the upstream has of a subdir: its index, asked for conditionally, checked, never older
    repodata   one upstream index, parsed once
    installers what an upstream's installer page lists, and what of it is missing
    plan       pure: an index and what is held -> what to fetch, to replace, to leave out, to delete
    survey     every subdir: judged, planned
    fetch      requests and downloads: tried again, from the next place, resumed
      wire     many HTTP exchanges at once (libcurl), and the rate limit
      hosts    pure: who is asked to wait, and who is given up
      sinks    where the bytes go: verified while they stream
    publish    the order in which what is served changes
      formats  every format of an index from one parse, with `shards` and `compress`
    store      the working directory: its lock, files that appear whole or not at all
    memory     what is remembered: which files were verified, how each subdir stands, what is due to go
    sync       a run: survey, fetch, publish, delete
    verify     what is held is hashed again; `proof` holds the formats against each other
    status     status.json, mirrorz.json, metrics
    report     what a run did; `progress` shows how far it is
    cli        command line, log, exit codes
"""

__version__ = "0.1.0"
