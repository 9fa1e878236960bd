"""The parts of `ling chat`: what was said, its commands, how answers are shown, and who gives them."""
