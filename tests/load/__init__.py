"""What the programs cost: benches that print figures beside their goals."""
