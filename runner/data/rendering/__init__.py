"""What a chat template makes of messages: the form it wants them in, reasoning blocks, what is left of an answer."""
