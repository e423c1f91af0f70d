"""What Nginx keeps of Conda's packages: checked against the index, purged by name, and told of.

Nginx knows no checksums, so a wrong file that an upstream gave would be served until it is evicted. It runs as the user
of Nginx's workers, and deletes nothing but entries of the cache.

    cli        the command line, and the commands but the service
    watch      the service, and what is told of the cache
    scan       the folders of the cache: what is new there, what is in flight; deletes an entry
    entry      the head of one file of Nginx's
    state      what is known, in a database
    check      judges what is due, and deletes what is wrong
      judge    pure: what the slices of a package come to
      records  what the served index says of a package, by `lanmirror_sync.shards`
    served     what Nginx has served, by its log
    names      pure: paths, and what an administrator may call them by
"""


class CacheError(Exception):
    """Something that an administrator has to mend; the message names it."""
