"""What agents print: taken, kept, read back."""
