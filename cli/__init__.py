"""The `concepts` command: words in, words out; the only room that joins the others."""
