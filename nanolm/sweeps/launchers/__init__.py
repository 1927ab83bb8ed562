"""The launchers of sweeps: `registry` has those of nanolm, `engine` what the driver expects of them."""
