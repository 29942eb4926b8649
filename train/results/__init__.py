"""Read and judge finished runs: summaries, comparisons, gates and lineage."""
