"""Object storage: folders of buckets read by ranges of bytes, fetched once per node, written whole or not at all."""
