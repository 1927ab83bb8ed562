"""nanolm: a research training framework for small language models, bigram to GPT."""
