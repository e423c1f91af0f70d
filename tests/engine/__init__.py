"""The sync engine as its users see it: a command line, and what an HTTP client gets from the mirror directory.

zygote   a process that has the engine imported and forks a run on demand
lab      an upstream, a mirror, and runs of the engine between them
outside  an HTTP client that reads every served index and asks for every file it names
    replay   the requests of conda, mamba and pixi, in their order
"""
