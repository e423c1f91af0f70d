"""The sync engine beside its peers."""
