//! Readers, tokenizers, batches and sampling, on made-up files, hostile files and real data.

mod batches;
mod files;
mod glue;
mod hostile;
mod language;
mod squad;
mod tokenizer;
