"""Tokens become text with times: `reader`, and its written forms: `subtitles`."""
