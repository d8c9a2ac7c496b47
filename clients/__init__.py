"""What runs at a device: local training, its private store, and the Flower ClientApp around them."""
