"""The compiler: one pass per file. `pipeline.compile_model` runs them in order."""
