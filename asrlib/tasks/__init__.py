"""What the commands for one's own speech do: evaluate, prepare a data set, the demo page."""
