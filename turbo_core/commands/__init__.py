"""The commands of ``turbowan``, one a file; `cli` lists them."""
