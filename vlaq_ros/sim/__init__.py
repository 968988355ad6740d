"""The simulated benchmark: Meta-World (MuJoCo) tasks behind the same types as a real robot."""
