"""Services that runs are tracked with, each by its own client; one file each."""
