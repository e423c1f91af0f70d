"""A mirror of Conda channels whose served indexes never name a file that is not there.

Data goes one way through these modules:

    config     what is wanted: the YAML file, the environment, the command line
    repodata   one upstream index: parsed once, filtered, and encoded in every format that is served
    installers what an upstream's installer page lists
    plan       pure: an index and what is held -> what to fetch, to keep, to replace, to leave out
    fetch      HTTP: verified downloads that resume
    store      the working directory: lock, atomic files, the ledger of deletions
    sync       a run: plans, fetches, publishes, deletes
    cli        command line, log, progress, exit codes
"""
