"""What FS-Merge is held against: baselines, alignment by permutations, and the scores of all of them."""
