"""What ends or stalls learners, and the error that says so."""
