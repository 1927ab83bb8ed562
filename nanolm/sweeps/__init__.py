"""Many runs from one line, which may be killed, repeated, shared and made longer."""
