"""Exchange of models and tokenizers with the Hugging Face ecosystem."""
