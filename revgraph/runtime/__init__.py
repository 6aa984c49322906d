"""Running a net: the tape, replays, and the module around them."""
