//! Text to tokens: readers, tokenizers, unpadded batches, sampling, the built-in task.
