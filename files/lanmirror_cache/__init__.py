"""What Nginx keeps of Conda's packages: checked against the index, purged by name, and told of.

Nginx knows no checksums, so a wrong file that an upstream gave would be served until it is evicted. It runs as the user
of Nginx's workers, and deletes nothing but entries of the cache.
"""


class CacheError(Exception):
    """Something that an administrator has to mend; the message names it."""
