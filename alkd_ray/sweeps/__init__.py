"""Many runs that share what was paid for: their settings, what is left to do, what was found."""
