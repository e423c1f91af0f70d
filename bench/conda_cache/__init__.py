"""Conda on demand beside a static file and beside the upstream itself."""
