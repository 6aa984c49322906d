"""Parts of the paper's experiments (Gomez et al. 2017): networks, strategies, training runs and charts."""
