"""From documents to packed rows: sources, mixing, packing, lanes, corpora, galleries, needles."""
