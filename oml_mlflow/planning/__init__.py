"""What is recorded, observed and planned. Pure: no I/O."""
