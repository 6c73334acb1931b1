"""What a chat template makes of messages: their form, reasoning blocks, what is left of an answer."""
