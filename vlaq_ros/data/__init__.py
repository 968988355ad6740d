"""From messages to observations: image decoding and sampling on the control clock."""
