"""Speech: audio in, text out, features between."""
