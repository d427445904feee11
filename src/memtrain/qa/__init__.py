"""Question answering data: public file formats, and long texts made around their gold paragraphs. No torch."""
