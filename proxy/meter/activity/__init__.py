"""Who ran when: request timelines, engine steps seen in token stamps."""
