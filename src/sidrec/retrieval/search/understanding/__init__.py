"""Query understanding learnt from a catalogue: spelling, phrases, spans, category, more words."""
