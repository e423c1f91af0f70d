"""The PyPI cache beside its peers."""
