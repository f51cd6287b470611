"""From whatever holds a photograph to the aligned, normalised crops that a network takes."""
