"""What stored records say: summaries, verdicts, histories and differences. No torch."""
