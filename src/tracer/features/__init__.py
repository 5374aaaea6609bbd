"""From text to numbers: sparse lexical blocks and dense embeddings."""
