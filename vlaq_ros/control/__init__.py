"""What decides on the control tick: which action is due, whether it is safe, how late we are."""
