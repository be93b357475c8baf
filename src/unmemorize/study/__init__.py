"""What a mitigation or an attack did, beside its controls: copies, extracted pictures, quality."""
