"""Where a searcher's results come from: BM25 or embeddings in this process, or a server over HTTP. No torch."""
