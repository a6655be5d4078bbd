"""What others see of a search while it runs: metrics of the Ray cluster, and services that people track runs with."""
