"""What a machine offers the engines."""
