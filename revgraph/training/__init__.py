"""Training on real images and text: data sets, recipes, the loop, and a demonstration of all three."""
