"""A mirror of Conda channels whose served indexes never name a file that is not there.

Data goes one way through these modules:

    config     what is wanted: the YAML file, the environment, the command line
      rules    pure: which packages may come in; `hidden` says which of an index may not
    mirror     what every part of a run works on: configuration, working directory, memory
    upstream   what the upstream has of a subdir: its index, asked for conditionally, checked
    repodata   one upstream index, parsed once
    installers what a page lists or a URL names, and what of it is missing
      listing  what a page lists, and the page that is ours; `pages` reads theirs
    plan       pure: an index and what is held -> what to fetch, to replace, to leave out, to delete
    survey     every subdir: judged, planned; only looks
    work       a subdir on its way from what was found to what is served
      channeldata  the same for a channel's `channeldata.json`
      wrongs   packages that are known to be wrong upstream
      sweep    what goes: packages that no index names, and what is not configured any more
    fetch      requests and downloads: tried again, from the next place, resumed
      answers  what comes of them, and the ways to fail
      wire     many HTTP exchanges at once (libcurl), and the rate limit
      hosts    pure: who is asked to wait, and who is given up
      sinks    where the bytes go: verified while they stream
    publish    the order in which what is served changes
      formats  every format of an index from one parse, with `shards` and `compress`
    store      the working directory: its lock, files that appear whole or not at all
    memory     what is remembered: which files were verified, what is due to go
      standing how a subdir stands
    room       whether what is to come fits: bytes and inodes, on each disk
    sync       a run: survey, fetch, publish, delete
    preview    what a run would do
      outlook  pure: the same in figures, as JSON and as tables
      planned  the indexes that it read, for the sync after it
    verify     what is held is hashed again; `proof` holds the formats against each other
    status     status.json, mirrorz.json, metrics
      kept     what `lanmirror_cache` tells of the web server's cache on demand
    report     what a run did; `progress` shows how far it is
    signals    a run that is asked to end does so in order
    cli        command line, log, exit codes
"""

__version__ = "0.1.0"
