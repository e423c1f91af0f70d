"""What looks after the cache on demand."""
