"""From .bin/.idx files to micro-batches."""
