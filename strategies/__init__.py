"""What runs at the aggregator: strategies, the round loop, checkpoints, and the Flower ServerApp around them."""
