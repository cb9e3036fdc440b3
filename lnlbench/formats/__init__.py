"""Safe readers of file formats: bytes go in, plain arrays come out, and no file content is ever executed."""
