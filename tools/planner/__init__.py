"""The planner: memory, speed and cost of a run before it is queued, from formulas that can be read and checked."""
