"""A task on images: handwritten digits as unlike writers write and read them."""
