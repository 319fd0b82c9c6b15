"""Milvus in place of the FAISS files: it proposes rows of a version; the version's own keys decide."""
