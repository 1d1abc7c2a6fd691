"""Find good settings for a merge: by trying them on labelled samples, or by agreement on unlabelled ones."""
