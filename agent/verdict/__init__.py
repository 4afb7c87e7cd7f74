"""How a failure is judged, without I/O: by what was seen before, what is known of it, and rules."""
