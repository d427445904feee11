"""``memtrain compare``: whole runs beside each other, from the base model to the score on the task."""
