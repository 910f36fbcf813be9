"""wise: lifelong editing of Hugging Face language models."""
