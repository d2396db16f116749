"""What is done with a finished operation: each sink does one thing and knows no other."""
