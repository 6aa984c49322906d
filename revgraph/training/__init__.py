"""Training on real images: data sets, the paper's recipe, the loop, and a demonstration of all three."""
