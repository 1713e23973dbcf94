"""What this package does, one function a verb."""
