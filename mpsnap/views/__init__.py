"""Pure functions from snapshots to text."""
