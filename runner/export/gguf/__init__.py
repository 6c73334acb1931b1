"""GGUF files: their architecture, tokenizer and kinds, the writer, and the comparison afterwards."""
