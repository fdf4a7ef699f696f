"""What each section of the report shows, gathered from the run's artifacts. No HTML here."""
