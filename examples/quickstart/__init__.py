"""From a fresh machine to an adapted Llama checkpoint: real weights, real text, one command."""
