"""The training loop: loss, one step, many steps, what is measured, what is kept."""
