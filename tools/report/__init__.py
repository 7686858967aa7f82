"""What a run did, so that a person sees it: one HTML or Markdown page, and the same live in a terminal."""
